"""What decoders are made of. Architectures put these together; each says what it computes.

A part takes x of shape [n_in, n] and returns [n_out, n]: one column for each token. The order of
operations is libllama's (`src/llama-graph.cpp`), so that its bits come out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from isthmus.device.graph import Graph
from isthmus.errors import ModelUnsupported
from isthmus.model.hparams import Heads, Hparams, Rope
from isthmus.model.passes.forward import Pass, Scores
from isthmus.model.products import Linear, LowRank


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


# ---------------------------------------------------------------------- attention


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


# ---------------------------------------------------------------------- feed-forward


@dataclass(frozen=True)
class Plain:
    """down · gelu(up · x)."""

    up: Linear
    down: Linear

    def __call__(self, g: Pass, x: int) -> int:
        return self.down(g, g.gelu(self.up(g, x)))


@dataclass(frozen=True)
class Gated:
    """down · (activation(gate · x) * (up · x))."""

    gate: Linear
    up: Linear
    down: Linear
    activate: Callable[[Graph, int, int], int] = Graph.swiglu
    """(graph, gate · x, up · x) -> their product, the first one activated."""

    def __call__(self, g: Pass, x: int) -> int:
        up = self.up(g, x)
        return self.down(g, self.activate(g, self.gate(g, x), up))


@dataclass(frozen=True)
class FusedGated:
    """As `Gated` with silu, gate and up one below the other in one matrix."""

    gate_up: Linear
    down: Linear

    def __call__(self, g: Pass, x: int) -> int:
        return self.down(g, g.swiglu_halves(self.gate_up(g, x)))


# ---------------------------------------------------------------------- blocks


@dataclass(frozen=True)
class Sequential:
    """x += attention(norm(x)) * scale, then x += feed_forward(norm(x)) * scale."""

    attn_norm: Part
    attention: Attention
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


@dataclass(frozen=True)
class Encoder:
    """One file's weights, of a model that makes embeddings and no text."""

    hparams: Hparams
    n_vocab: int
    token_embd: int
    norm: Part
    blocks: tuple[Part, ...]
    token_type: int
    """A vector that is added to each token's: that of a first sentence. 0 for none."""
    position_embd: int
    """[n_embd, n_ctx_train], whose rows are added; 0 where positions are rotated in."""

    def hidden(self, g: Pass) -> int:
        """What the last block makes of each token: f32 [n_embd, n]."""
        x = g.get_rows(self.token_embd, g.tokens)
        if self.token_type:
            x = g.add(x, self.token_type)
        if self.position_embd:
            x = g.add(g.get_rows(self.position_embd, g.positions), x)
        x = self.norm(g, x)
        for block in self.blocks:
            x = block(g, x)
        return x

    def build(self, _g: Pass) -> int:
        """There are no logits. ModelUnsupported; nobody comes here who asked `Model.layout`."""
        raise ModelUnsupported(f"{self.hparams.architecture} models make no text")


@dataclass(frozen=True)
class Decoder:
    """One file's weights, ready to be written into graphs by `build`."""

    hparams: Hparams
    n_vocab: int
    token_embd: int
    blocks: tuple[Part, ...]
    norm: Part
    output: Linear
    embedding_scale: float = 1.0
    logits_scale: float = 1.0
    logits_soft_cap: float = 0.0
    """Logits become cap * tanh(logits / cap); 0: they stay."""
    embedding_updates: tuple[LowRank, ...] = ()
    """What adapters add to the embeddings."""

    def hidden(self, g: Pass) -> int:
        """What comes before the logits: f32 [n_embd, n_outputs]."""
        x = g.get_rows(self.token_embd, g.tokens)
        for update in self.embedding_updates:
            x = update.added_rows(g, x)
        if self.embedding_scale != 1.0:
            x = g.scale(x, self.embedding_scale)
        g.expand(x)
        for block in self.blocks:
            x = block(g, x)
        return self.norm(g, x)

    def build(self, g: Pass) -> int:
        """The forward pass: f32 [n_vocab, n_outputs]."""
        logits = self.output(g, self.hidden(g))
        if self.logits_scale != 1.0:
            logits = g.scale(logits, self.logits_scale)
        if cap := self.logits_soft_cap:
            logits = g.scale(g.tanh(g.scale(logits, 1.0 / cap)), cap)
        return logits
