"""Tiny projectors with random weights, for the text models of `tests.tiny_gguf`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.tiny_gguf import TinyModel, _add

EMBD, FF, LAYERS, HEADS = 64, 96, 2, 2
PATCH = 8
MELS, FRAMES = 80, 1500
STACK = 10

TEXTS = {
    "gemma3": TinyModel(
        "gemma3", with_tokenizer=True, more_special=("<start_of_image>", "<end_of_image>")
    ),
    "qwen3vl": TinyModel(
        "qwen3vl", with_tokenizer=True, more_special=("<|vision_start|>", "<|vision_end|>")
    ),
    "ultravox": TinyModel("llama", with_tokenizer=True),
}
"""The text model that each kind of projector is for."""
KINDS = tuple(TEXTS)


@dataclass
class TinyProjector:
    """One of KINDS; `width` is the text model's n_embd."""

    kind: str = "gemma3"
    width: int = 64
    image_size: int = 64
    seed: int = 7
    overrides: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()

    def write(self, path: Path) -> Path:
        """Writes the file."""
        self._random = np.random.default_rng(self.seed)
        writer = gguf.GGUFWriter(path, "clip")
        for key, value in (self._metadata() | self.overrides).items():
            _add(writer, f"clip.{key}", value)
        for name, values in self._tensors().items():
            if name not in self.without:
                writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    @property
    def _hears(self) -> bool:
        return self.kind == "ultravox"

    def _metadata(self) -> dict[str, Any]:
        kind = "audio" if self._hears else "vision"
        projector = {"qwen3vl": "qwen3vl_merger"}.get(self.kind, self.kind)
        values: dict[str, Any] = {
            "projector_type": projector,
            f"has_{kind}_encoder": True,
            f"{kind}.embedding_length": EMBD,
            f"{kind}.feed_forward_length": FF,
            f"{kind}.block_count": LAYERS,
            f"{kind}.projection_dim": self.width,
            f"{kind}.attention.head_count": HEADS,
            f"{kind}.attention.layer_norm_epsilon": 1e-6,
            "use_gelu": True,
        }
        if self._hears:
            return values | {
                "audio.num_mel_bins": MELS,
                "audio.projector.stack_factor": STACK,
            }
        return values | {
            "vision.image_size": self.image_size,
            "vision.patch_size": PATCH,
            "vision.image_mean": [0.5, 0.5, 0.5],
            "vision.image_std": [0.5, 0.5, 0.5],
        }

    def _tensors(self) -> dict[str, np.ndarray]:
        found = self._encoder("a" if self._hears else "v")
        return (
            found
            | {"gemma3": self._gemma3, "qwen3vl": self._qwen3vl}.get(self.kind, self._ultravox)()
        )

    def _encoder(self, prefix: str) -> dict[str, np.ndarray]:
        n = self._n
        found = {}
        for layer in range(LAYERS):
            at = f"{prefix}.blk.{layer}"
            for name in ("ln1", "ln2"):
                found |= {f"{at}.{name}.weight": 1 + n(EMBD), f"{at}.{name}.bias": n(EMBD)}
            found |= self._linear(f"{at}.attn_out", EMBD, EMBD)
            found |= self._linear(f"{at}.ffn_up", EMBD, FF) | self._linear(
                f"{at}.ffn_down", FF, EMBD
            )
            if self.kind == "qwen3vl":
                found |= self._linear(f"{at}.attn_qkv", EMBD, 3 * EMBD)
                continue
            for name in ("attn_q", "attn_k", "attn_v"):
                found |= self._linear(f"{at}.{name}", EMBD, EMBD)
            if prefix == "a":
                del found[f"{at}.attn_k.bias"]
        return found | {f"{prefix}.post_ln.weight": 1 + n(EMBD), f"{prefix}.post_ln.bias": n(EMBD)}

    def _sight(self) -> dict[str, np.ndarray]:
        n_patches = (self.image_size // PATCH) ** 2
        return {
            "v.patch_embd.weight": self._n(EMBD, 3, PATCH, PATCH),
            "v.patch_embd.bias": self._n(EMBD),
            "v.position_embd.weight": self._n(n_patches, EMBD),
        }

    def _gemma3(self) -> dict[str, np.ndarray]:
        return self._sight() | {
            "mm.input_projection.weight": self._n(EMBD, self.width),
            "mm.soft_emb_norm.weight": 1 + self._n(EMBD),
        }

    def _qwen3vl(self) -> dict[str, np.ndarray]:
        merged = 4 * EMBD
        found = self._sight() | {"v.patch_embd.weight.1": self._n(EMBD, 3, PATCH, PATCH)}
        found |= self._linear("mm.0", merged, merged) | self._linear("mm.2", merged, self.width)
        at = "v.deepstack.0"
        found |= {f"{at}.norm.weight": 1 + self._n(merged), f"{at}.norm.bias": self._n(merged)}
        return (
            found
            | self._linear(f"{at}.fc1", merged, merged)
            | self._linear(f"{at}.fc2", merged, self.width)
        )

    def _ultravox(self) -> dict[str, np.ndarray]:
        stacked, half = STACK * EMBD, self.width
        return {
            "a.position_embd.weight": self._n(FRAMES, EMBD),
            "a.conv1d.1.weight": self._n(EMBD, MELS, 3).astype(np.float16),
            "a.conv1d.1.bias": self._n(EMBD, 1),
            "a.conv1d.2.weight": self._n(EMBD, EMBD, 3).astype(np.float16),
            "a.conv1d.2.bias": self._n(EMBD, 1),
            "mm.a.norm_pre.weight": 1 + self._n(stacked),
            "mm.a.mlp.1.weight": self._n(2 * half, stacked),
            "mm.a.norm_mid.weight": 1 + self._n(half),
            "mm.a.mlp.2.weight": self._n(self.width, half),
        }

    def _linear(self, name: str, n_in: int, n_out: int) -> dict[str, np.ndarray]:
        return {f"{name}.weight": self._n(n_out, n_in), f"{name}.bias": self._n(n_out)}

    def _n(self, *shape: int) -> np.ndarray:
        scale = 0.1 if len(shape) == 1 else float(np.prod(shape[1:])) ** -0.5
        return (self._random.standard_normal(shape) * scale).astype(np.float32)
