"""Writes a GGUF file with a known model's shape and random weights: for speed, not for words.

python tools/random_model.py llama-1b Q8_0 out.gguf
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType


@dataclass(frozen=True)
class Shape:
    """Of a `llama` model."""

    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_vocab: int
    tied: bool


SHAPES = {
    "llama-1b": Shape(16, 2048, 8192, 32, 8, 64, 128256, tied=True),
    "llama-8b": Shape(32, 4096, 14336, 32, 8, 128, 128256, tied=False),
    "smollm2": Shape(30, 576, 1536, 9, 3, 64, 49152, tied=True),
}
"""Meta's Llama 3.2 1B and 3.1 8B, Hugging Face's SmolLM2 135M, as their config.json say."""
TYPES = ("Q8_0", "Q4_0", "F16")
_SCALES = {"Q8_0": 74, "Q4_0": 4.6}
"""The deviation of the integers that a block of random bytes stands for."""


def write(shape: Shape, dtype: str, path: Path, seed: int = 0) -> None:
    """Writes the file; the same seed gives the same bytes."""
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("random")
    writer.add_block_count(shape.n_layer)
    writer.add_context_length(131072)
    writer.add_embedding_length(shape.n_embd)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(500000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.n_vocab)
    writer.add_tokenizer_model("none")
    for name, rows, columns in _matrices(shape):
        kind = GGMLQuantizationType[dtype]
        writer.add_tensor(name, _matrix(random, dtype, rows, columns), raw_dtype=kind)
    for name in _gains(shape):
        writer.add_tensor(name, np.ones(shape.n_embd, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _matrices(it: Shape) -> list[tuple[str, int, int]]:
    found = [("token_embd.weight", it.n_vocab, it.n_embd)]
    if not it.tied:
        found.append(("output.weight", it.n_vocab, it.n_embd))
    q, kv = it.n_head * it.head_dim, it.n_head_kv * it.head_dim
    parts = {
        "attn_q": (q, it.n_embd),
        "attn_k": (kv, it.n_embd),
        "attn_v": (kv, it.n_embd),
        "attn_output": (it.n_embd, q),
        "ffn_gate": (it.n_ff, it.n_embd),
        "ffn_up": (it.n_ff, it.n_embd),
        "ffn_down": (it.n_embd, it.n_ff),
    }
    for layer in range(it.n_layer):
        found += [(f"blk.{layer}.{name}.weight", *size) for name, size in parts.items()]
    return found


def _gains(shape: Shape) -> list[str]:
    layers = range(shape.n_layer)
    norms = [f"blk.{layer}.{name}.weight" for layer in layers for name in ("attn_norm", "ffn_norm")]
    return ["output_norm.weight", *norms]


def _matrix(random: np.random.Generator, dtype: str, rows: int, columns: int) -> np.ndarray:
    deviation = columns**-0.5
    if dtype == "F16":
        return _halves(random, rows * columns, deviation).reshape(rows, columns)
    per_block, nbytes = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[dtype]]
    blocks = random.integers(0, 256, (rows * columns // per_block, nbytes), np.uint8)
    scale = np.float16(deviation / _SCALES[dtype])
    blocks[:, :2] = np.frombuffer(scale.tobytes(), np.uint8)
    return np.asarray(blocks.reshape(rows, columns // per_block * nbytes))


def _halves(random: np.random.Generator, n: int, deviation: float) -> np.ndarray:
    """F16 of random sign and fraction, whose exponent is one of four: quickly made."""
    bits = np.frombuffer(random.bytes(2 * n), np.uint16) & 0x8FFF  # fraction, 2 of exponent, sign
    lowest = int(np.floor(np.log2(deviation))) - 2
    return np.asarray((bits + np.uint16(15 + lowest << 10)).view(np.float16))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("type", choices=TYPES)
    parser.add_argument("path", type=Path)
    arguments = parser.parse_args()
    write(SHAPES[arguments.shape], arguments.type, arguments.path)
