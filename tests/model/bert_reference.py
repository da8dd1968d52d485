"""BERT and Nomic BERT in numpy, in f64 and from their papers: nothing of it is shared with ggml.

https://arxiv.org/abs/1810.04805, https://arxiv.org/abs/2402.01613
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import gguf
import numpy as np


@dataclass
class Weights:
    """A GGUF file of F32 or F16, read by the `gguf` package."""

    architecture: str
    fields: dict[str, Any]
    tensors: dict[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.tensors[name].astype(np.float64)

    def get(self, name: str) -> np.ndarray | float:
        """0 where there is none."""
        return self[name] if name in self.tensors else 0.0

    def setting(self, name: str) -> Any:
        """One of the architecture's keys."""
        return self.fields[f"{self.architecture}.{name}"]


def read_gguf(path: Path) -> Weights:
    """All of a file."""
    reader = gguf.GGUFReader(path)
    fields = {name: it.contents() for name, it in reader.fields.items()}
    tensors = {it.name: np.array(it.data) for it in reader.tensors}
    return Weights(fields["general.architecture"], fields, tensors)


def embed(w: Weights, tokens: Sequence[int]) -> np.ndarray:
    """f64 [n_embd]: mean or first token, of length 1."""
    x = w["token_embd.weight"][list(tokens)] + w["token_types.weight"][0]
    if w.architecture == "bert":
        x = x + w["position_embd.weight"][: len(tokens)]
    x = _norm(w, "token_embd_norm", x)
    for layer in range(w.setting("block_count")):
        x = _block(w, f"blk.{layer}.", x)
    pooled = x.mean(axis=0) if w.setting("pooling_type") == 1 else x[0]
    return pooled / np.linalg.norm(pooled)


def _block(w: Weights, prefix: str, x: np.ndarray) -> np.ndarray:
    seen = _linear(w, prefix + "attn_output", _attention(w, prefix, x))
    x = _norm(w, prefix + "attn_output_norm", x + seen)
    up = _linear(w, prefix + "ffn_up", x)
    if w.architecture == "bert":
        made = up * 0.5 * (1 + _erf(up / sqrt(2)))
    else:
        gate = _linear(w, prefix + "ffn_gate", x)
        made = up * gate / (1 + np.exp(-gate))
    return _norm(w, prefix + "layer_output_norm", x + _linear(w, prefix + "ffn_down", made))


def _attention(w: Weights, prefix: str, x: np.ndarray) -> np.ndarray:
    n_head = w.setting("attention.head_count")
    if prefix + "attn_qkv.weight" in w.tensors:
        whole = np.split(_linear(w, prefix + "attn_qkv", x), 3, axis=1)
    else:
        whole = [_linear(w, f"{prefix}attn_{it}", x) for it in "qkv"]
    q, k, v = (it.reshape(len(x), n_head, -1).transpose(1, 0, 2) for it in whole)
    if w.architecture != "bert":
        base = w.setting("rope.freq_base")
        q, k = _rotated(q, base), _rotated(k, base)
    scores = q @ k.transpose(0, 2, 1) / sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    seen = weights / weights.sum(axis=-1, keepdims=True) @ v
    return seen.transpose(1, 0, 2).reshape(len(x), -1)


def _rotated(x: np.ndarray, base: float) -> np.ndarray:
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None] * base ** (-np.arange(half) / half)
    left, right, cos, sin = x[..., :half], x[..., half:], np.cos(angles), np.sin(angles)
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


def _linear(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    return x @ w[name + ".weight"].T + w.get(name + ".bias")


def _norm(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    epsilon = w.setting("attention.layer_norm_epsilon")
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)
    return scaled * w[name + ".weight"] + w[name + ".bias"]


def _erf(x: np.ndarray) -> np.ndarray:
    """To 1.5e-7: Abramowitz and Stegun, 7.1.26."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    rest = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
    return np.sign(x) * (1 - np.polyval(rest, t) * t * np.exp(-(x**2)))
