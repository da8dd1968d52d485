"""Blocks: what looks at other tokens, a feed-forward network, and where the norms are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from isthmus.model.blocks.attention import Attention
from isthmus.model.blocks.part import Part
from isthmus.model.passes.forward import Pass


class Mixer(Part, Protocol):
    """A part that looks at other tokens: attention, or what stands for it in its layer."""

    @property
    def layer(self) -> int:
        """The number of its layer."""


@dataclass(frozen=True)
class Sequential:
    """x += attention(norm(x)) * scale, then x += feed_forward(norm(x)) * scale."""

    attn_norm: Part
    attention: Mixer
    ffn_norm: Part
    feed_forward: Part
    scale: float = 1.0

    def __call__(self, g: Pass, x: int) -> int:
        seen = self.attention(g, self.attn_norm(g, x))
        seen, x = g.outputs(self.attention.layer, seen, x)
        x = g.add(self._scaled(g, seen), x)
        return g.add(self._scaled(g, self.feed_forward(g, self.ffn_norm(g, x))), x)

    def _scaled(self, g: Pass, x: int) -> int:
        return g.scale(x, self.scale) if self.scale != 1.0 else x


@dataclass(frozen=True)
class Single:
    """x += part(norm(x)): a block that only looks at other tokens, or is only a network."""

    layer: int
    norm: Part
    part: Part

    def __call__(self, g: Pass, x: int) -> int:
        made, x = g.outputs(self.layer, self.part(g, self.norm(g, x)), x)
        return g.add(made, x)


@dataclass(frozen=True)
class Sandwich:
    """x += norm(attention(norm(x))), then x += norm(feed_forward(norm(x))).

    Without an `ffn_norm`, the feed-forward network has norms of its own.
    """

    attn_norm: Part
    attention: Attention
    attn_post_norm: Part
    ffn_norm: Part | None
    feed_forward: Part
    ffn_post_norm: Part

    def __call__(self, g: Pass, x: int) -> int:
        seen = self.attention(g, self.attn_norm(g, x))
        seen, x = g.outputs(self.attention.layer, seen, x)
        x = g.add(self.attn_post_norm(g, seen), x)
        made = self.feed_forward(g, self.ffn_norm(g, x) if self.ffn_norm else x)
        return g.add(self.ffn_post_norm(g, made), x)


@dataclass(frozen=True)
class PostNorm:
    """x = norm(attention(x) + x), then x = norm(feed_forward(x) + x)."""

    attention: Attention
    attn_norm: Part
    feed_forward: Part
    ffn_norm: Part

    def __call__(self, g: Pass, x: int) -> int:
        x = self.attn_norm(g, g.add(self.attention(g, x), x))
        return self.ffn_norm(g, g.add(self.feed_forward(g, x), x))
