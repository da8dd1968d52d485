"""Tiny GGUF files with random weights, made by the `gguf` package."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@dataclass
class TinyLlama:
    """A `llama` model; every field is a feature that its GGUF can say."""

    n_layer: int = 2
    n_embd: int = 64
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 32
    n_ff: int = 96
    n_vocab: int = 320
    n_ctx: int = 1024
    tied: bool = True
    biases: bool = False
    fused_qkv: bool = False
    quantisation: str = "F32"
    rope_factors: bool = False
    rope_scaling: dict[str, object] = field(default_factory=dict)
    with_tokenizer: bool = False
    architecture: str = "llama"
    extra_tensors: tuple[str, ...] = ()
    overrides: dict[str, int] = field(default_factory=dict)
    seed: int = 0

    def write(self, path: Path) -> Path:
        """Writes the file."""
        writer = gguf.GGUFWriter(path, self.architecture)
        self._write_metadata(writer)
        if self.with_tokenizer:
            self._write_tokenizer(writer)
        else:
            writer.add_tokenizer_model("none")
        self._write_tensors(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def _write_metadata(self, w: gguf.GGUFWriter) -> None:
        w.add_name("tiny")
        w.add_block_count(self.n_layer)
        w.add_context_length(self.n_ctx)
        w.add_embedding_length(self.n_embd)
        w.add_feed_forward_length(self.n_ff)
        w.add_head_count(self.n_head)
        w.add_head_count_kv(self.n_head_kv)
        w.add_key_length(self.head_dim)
        w.add_value_length(self.head_dim)
        w.add_rope_dimension_count(self.head_dim)
        w.add_rope_freq_base(10_000.0)
        w.add_layer_norm_rms_eps(1e-5)
        w.add_vocab_size(self.n_vocab)
        for key, value in self.rope_scaling.items():
            name = f"{self.architecture}.rope.scaling.{key}"
            if isinstance(value, str):
                w.add_string(name, value)
            elif isinstance(value, int):
                w.add_uint32(name, value)
            else:
                w.add_float32(name, value)
        for key, number in self.overrides.items():
            w.add_uint32(f"{self.architecture}.{key}", number)

    def _write_tokenizer(self, w: gguf.GGUFWriter) -> None:
        """A byte-level BPE without merges: each byte is a token, then the special ones."""
        from gguf.vocab import bytes_to_unicode  # type: ignore[attr-defined]

        tokens = [*SPECIAL, *bytes_to_unicode().values()]
        tokens += [f"[unused{n}]" for n in range(self.n_vocab - len(tokens))]
        control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre("gpt-2")
        w.add_token_list(tokens)
        w.add_token_types([control] * len(SPECIAL) + [normal] * (self.n_vocab - len(SPECIAL)))
        w.add_token_merges([f"{tokens[3 + 64]} {tokens[3 + 65]}"])
        w.add_bos_token_id(0)
        w.add_eos_token_id(2)
        w.add_chat_template(CHATML)

    def _write_tensors(self, w: gguf.GGUFWriter) -> None:
        rng = np.random.default_rng(self.seed)
        kind = gguf.GGMLQuantizationType[self.quantisation]

        def vector(name: str, n: int, around: float) -> None:
            values = around + 0.1 * rng.standard_normal(n)
            w.add_tensor(name, values.astype(np.float32))

        def matrix(name: str, n_in: int, n_out: int) -> None:
            values = rng.standard_normal((n_out, n_in)).astype(np.float32) * n_in**-0.5
            if self.quantisation == "F32":
                w.add_tensor(name, values)
            else:
                w.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

        q, kv = self.n_head * self.head_dim, self.n_head_kv * self.head_dim
        matrix("token_embd.weight", self.n_embd, self.n_vocab)
        vector("output_norm.weight", self.n_embd, 1.0)
        if not self.tied:
            matrix("output.weight", self.n_embd, self.n_vocab)
        if self.rope_factors:
            factors = np.linspace(1.0, 8.0, self.head_dim // 2, dtype=np.float32)
            w.add_tensor("rope_freqs.weight", factors)
        if self.rope_scaling.get("type") == "longrope":
            for length, top in (("short", 2.0), ("long", 9.0)):
                factors = np.linspace(1.0, top, self.head_dim // 2, dtype=np.float32)
                w.add_tensor(f"rope_factors_{length}.weight", factors)
        for i in range(self.n_layer):
            vector(f"blk.{i}.attn_norm.weight", self.n_embd, 1.0)
            vector(f"blk.{i}.ffn_norm.weight", self.n_embd, 1.0)
            shapes = {
                "attn_output": (q, self.n_embd),
                "ffn_gate": (self.n_embd, self.n_ff),
                "ffn_up": (self.n_embd, self.n_ff),
                "ffn_down": (self.n_ff, self.n_embd),
            }
            if self.fused_qkv:
                shapes["attn_qkv"] = (self.n_embd, q + 2 * kv)
            else:
                shapes |= {"attn_q": (self.n_embd, q), "attn_k": (self.n_embd, kv)}
                shapes["attn_v"] = (self.n_embd, kv)
            for name, (n_in, n_out) in shapes.items():
                matrix(f"blk.{i}.{name}.weight", n_in, n_out)
                if self.biases:
                    vector(f"blk.{i}.{name}.bias", n_out, 0.0)
        for name in self.extra_tensors:
            vector(name, 32, 0.0)
