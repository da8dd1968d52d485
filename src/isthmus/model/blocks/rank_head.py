"""What a reranker has behind its last block: a small classifier of one token."""

from __future__ import annotations

from dataclasses import dataclass

from isthmus.model.blocks.products import Linear
from isthmus.model.passes.forward import Pass


@dataclass(frozen=True)
class RankHead:
    """out · tanh(dense · x), or one of both alone; scores that add up to 1 if `softmax`."""

    dense: Linear | None
    out: Linear | None
    softmax: bool = False

    def __call__(self, g: Pass, x: int) -> int:
        """f32 [n_scores, 1] from [n_embd, 1]."""
        if self.dense is not None:
            x = g.tanh(self.dense(g, x))
        if self.out is not None:
            x = self.out(g, x)
        return g.softmax(x) if self.softmax else x
