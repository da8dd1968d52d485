"""Attention over the KV cache, and how its queries, keys and values are made."""

from __future__ import annotations

from dataclasses import dataclass

from isthmus.model.blocks.part import Part, Projection
from isthmus.model.blocks.products import Linear
from isthmus.model.passes.forward import Pass, Scores
from isthmus.model.shape.hparams import Heads, Rope


@dataclass(frozen=True)
class SeparateQkv:
    """Queries, keys and values of a matrix each."""

    heads: Heads
    q: Linear
    k: Linear
    v: Linear

    def __call__(self, g: Pass, x: int) -> tuple[int, int, int]:
        q, k = g.heads(self.q(g, x), self.heads.n), g.heads(self.k(g, x), self.heads.n_kv)
        return q, k, self.v(g, x)


@dataclass(frozen=True)
class FusedQkv:
    """Queries, keys and values one below the other in one matrix."""

    heads: Heads
    qkv: Linear

    def __call__(self, g: Pass, x: int) -> tuple[int, int, int]:
        heads, whole = self.heads, self.qkv(g, x)
        q = g.heads_at(whole, heads.n, heads.dim, 0)
        k = g.heads_at(whole, heads.n_kv, heads.dim, heads.n_embd_q)
        return q, k, g.rows_at(whole, heads.n_embd_v, heads.n_embd_q + heads.n_embd_k)


@dataclass(frozen=True)
class NormedQkv:
    """Queries, keys and values of a matrix each; norms over all heads of queries and of keys."""

    heads: Heads
    q: Linear
    k: Linear
    v: Linear
    q_norm: Part
    k_norm: Part

    def __call__(self, g: Pass, x: int) -> tuple[int, int, int]:
        q, k, v = self.q(g, x), self.k(g, x), self.v(g, x)
        q, k = self.q_norm(g, q), self.k_norm(g, k)
        return g.heads(q, self.heads.n), g.heads(k, self.heads.n_kv), v


@dataclass(frozen=True)
class NormedValues:
    """Queries, keys and values, which are normed; values are the keys if they have no matrix.

    A layer without keys reads the cache of another.
    """

    heads: Heads
    q: Linear
    k: Linear | None
    v: Linear | None

    def __call__(self, g: Pass, x: int) -> tuple[int, int, int]:
        q = g.heads(self.q(g, x), self.heads.n)
        if self.k is None:
            return q, 0, 0
        k = self.k(g, x)
        v = g.heads(self.v(g, x) if self.v else k, self.heads.n_kv)
        v = g.rms_norm(v, g.hparams.norm_epsilon)
        return q, g.heads(k, self.heads.n_kv), g.flat_heads(v)


@dataclass(frozen=True)
class Rotary:
    """Rotates positions into heads; `short` and `long` divide the frequencies, 0 for none."""

    rope: Rope
    short: int = 0
    long: int = 0

    def __call__(self, g: Pass, x: int) -> int:
        factors = self.long if g.n_ctx > self.rope.n_ctx_original else self.short
        return g.rope(x, self.rope, factors)


@dataclass(frozen=True)
class Attention:
    """out · attention(rotary(q_norm(q)) * q_scale, rotary(k_norm(k)), v).

    Queries are multiplied with `temperature` at their positions, before `q_scale`.
    """

    layer: int
    qkv: Projection
    out: Part
    scores: Scores
    rotary: Part | None
    q_norm: Part | None = None
    k_norm: Part | None = None
    q_scale: float = 1.0
    temperature: int = 0
    """F32 [n_ctx_train]: a factor of queries for each position; 0: there is none."""

    def __call__(self, g: Pass, x: int) -> int:
        q, k, v = self.qkv(g, x)
        q = self._prepare(g, q, self.q_norm)
        k = self._prepare(g, k, self.k_norm) if k else 0
        if self.temperature:
            q = g.mul(q, g.at_positions(self.temperature))
        if self.q_scale != 1.0:
            q = g.scale(q, self.q_scale)
        return self.out(g, g.attend(q, k, v, self.scores))

    def _prepare(self, g: Pass, x: int, norm: Part | None) -> int:
        x = norm(g, x) if norm else x
        return self.rotary(g, x) if self.rotary else x
