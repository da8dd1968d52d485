"""What a part of a model is, and norms, which are parts of every block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from isthmus.model.passes.forward import Pass


class Part(Protocol):
    """Anything that makes columns of columns."""

    def __call__(self, g: Pass, x: int) -> int:
        """Its result, as a part of the graph `g`."""


Projection = Callable[[Pass, int], tuple[int, int, int]]
"""x to q [dim, n_head, n], k [dim, n_head_kv, n] and v [n_embd_v, n]; k and v are 0 in a layer that
reads the cache of another."""


@dataclass(frozen=True)
class RmsNorm:
    """x / sqrt(mean(x²) + epsilon) * weight."""

    weight: int

    def __call__(self, g: Pass, x: int) -> int:
        return g.mul(g.rms_norm(x, g.hparams.norm_epsilon), self.weight)


@dataclass(frozen=True)
class LayerNorm:
    """(x - mean(x)) / sqrt(variance(x) + epsilon) * weight + bias."""

    weight: int
    bias: int

    def __call__(self, g: Pass, x: int) -> int:
        return g.add(g.mul(g.layer_norm(x, g.hparams.norm_epsilon), self.weight), self.bias)
