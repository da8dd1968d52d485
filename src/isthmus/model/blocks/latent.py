"""Latent attention (MLA): keys and values are made of one short vector of each token.

The KV cache has that latent and what is rotated of a key, for all heads together. Queries are
brought to the latent's space before attention, and values out of it afterwards (`LatentQkv`,
`LatentOut`). Old files do not part the matrix that makes keys and values: then these are made
before, and cached (`ExpandedQkv`). The order of operations is libllama's
(`src/models/deepseek2.cpp`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from isthmus.model.blocks import Part
from isthmus.model.blocks.products import Linear
from isthmus.model.passes.forward import Pass


@dataclass(frozen=True)
class Chain:
    """Parts one after the other."""

    parts: Sequence[Part]

    def __call__(self, g: Pass, x: int) -> int:
        for part in self.parts:
            x = part(g, x)
        return x


@dataclass(frozen=True)
class Latent:
    """What queries, keys and values are made of: q in two parts, the latent, and a rotated key."""

    q: Part
    """[n_embd, n_head * (n_plain + n_rot)]"""
    kv: Part
    """[n_embd, n_latent + n_rot]"""
    norm: Part
    """Of the latent."""
    rotary: Part
    n_head: int
    n_plain: int
    """Elements of a query that are not rotated."""
    n_rot: int
    n_latent: int

    def queries(self, g: Pass, x: int) -> tuple[int, int]:
        """[n_plain, n_head, n], and [n_rot, n_head, n] rotated."""
        q = g.heads(self.q(g, x), self.n_head)
        _, head, column, _ = g.describe(q).nb
        plain = g.view_3d(q, (self.n_plain, self.n_head, g.n), (head, column), 0)
        turned = (self.n_rot, self.n_head, g.n)
        return plain, self.rotary(g, g.view_3d(q, turned, (head, column), 4 * self.n_plain))

    def latent(self, g: Pass, x: int) -> tuple[int, int]:
        """[n_latent, n], and [n_rot, 1, n] rotated."""
        both = self.kv(g, x)
        key = g.heads_at(both, 1, self.n_rot, self.n_latent)
        return self.norm(g, g.rows_at(both, self.n_latent, 0)), self.rotary(g, key)


@dataclass(frozen=True)
class LatentQkv:
    """Queries in the latent's space, and keys whose first elements are the values."""

    source: Latent
    k_b: int
    """[n_plain, n_latent, n_head]"""

    def __call__(self, g: Pass, x: int) -> tuple[int, int, int]:
        plain, turned = self.source.queries(g, x)
        q = g.join_rows(g.matmul_heads(self.k_b, plain), turned)
        latent, key = self.source.latent(g, x)
        latent = g.reshape(latent, self.source.n_latent, 1, g.n)
        return q, g.join_rows(latent, key), 0


@dataclass(frozen=True)
class LatentOut:
    """out · (each head's v_b · what it has seen)."""

    v_b: int
    """[n_latent, n_value, n_head]"""
    out: Linear

    def __call__(self, g: Pass, x: int) -> int:
        n_value, n_head = g.describe(self.v_b).ne[1:3]
        values = g.copied(g.matmul_heads(self.v_b, g.heads(x, n_head)))
        return self.out(g, g.reshape(values, n_value * n_head, g.n))


@dataclass(frozen=True)
class ExpandedQkv:
    """Queries, keys and values of each head, made of the latent."""

    source: Latent
    kv_b: Linear
    """[n_latent, n_head * (n_plain + n_value)]"""
    n_value: int

    def __call__(self, g: Pass, x: int) -> tuple[int, int, int]:
        source, n_head = self.source, self.source.n_head
        plain, turned = source.queries(g, x)
        latent, key = source.latent(g, x)
        both = g.heads(self.kv_b(g, latent), n_head)
        _, head, column, _ = g.describe(both).nb
        keys = g.view_3d(both, (source.n_plain, n_head, g.n), (head, column), 0)
        shape, begin = (self.n_value, n_head, g.n), 4 * source.n_plain
        values = g.copied(g.view_3d(both, shape, (head, column), begin))
        k = g.join_rows(keys, g.repeated_like(key, turned))
        return g.join_rows(plain, turned), k, g.flat_heads(values)
