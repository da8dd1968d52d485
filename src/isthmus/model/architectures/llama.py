"""The `llama` architecture: Llama 1 to 3, SmolLM, Mistral and others that call themselves so.

Each block, with x of shape [n_embd, n]::

    x += Wo · attention(rope(Wq · norm(x)), rope(Wk · norm(x)), Wv · norm(x))
    x += Wdown · (silu(Wgate · norm(x)) * (Wup · norm(x)))

The order of operations is libllama's (`src/models/llama.cpp`), so that its bits come out.
"""

from __future__ import annotations

from dataclasses import dataclass

from isthmus.errors import ModelUnsupported
from isthmus.model.forward import Pass
from isthmus.model.gguf import GgufFile
from isthmus.model.hparams import Hparams, Metadata, RopeScaling
from isthmus.model.weights import Weights

IGNORED = ("attn_rot_embd",)


@dataclass(frozen=True)
class Layer:
    """Tensors of one block; 0 where the file has none."""

    attn_norm: int
    wqkv: int
    wqkv_bias: int
    wq: int
    wq_bias: int
    wk: int
    wk_bias: int
    wv: int
    wv_bias: int
    wo: int
    wo_bias: int
    ffn_norm: int
    gate: int
    gate_bias: int
    up: int
    up_bias: int
    down: int
    down_bias: int


@dataclass(frozen=True)
class Architecture:
    """One file's weights, ready to be written into graphs by `build`."""

    hparams: Hparams
    token_embd: int
    output_norm: int
    output: int
    rope_short: int
    rope_long: int
    layers: tuple[Layer, ...]
    n_vocab: int

    def build(self, g: Pass) -> int:
        """The forward pass: f32 [n_vocab, n_outputs]."""
        h = self.hparams
        factors = self.rope_long if g.n_ctx > h.rope.n_ctx_original else self.rope_short
        x = g.get_rows(self.token_embd, g.tokens)
        g.expand(x)
        for index, layer in enumerate(self.layers):
            residual = x
            q, k, v = self._qkv(g, layer, g.norm(x, layer.attn_norm))
            q, k = g.rope(q, factors), g.rope(k, factors)
            x = g.linear(layer.wo, g.attend(index, q, k, v), layer.wo_bias)
            if index == h.n_layer - 1:
                x, residual = g.select_outputs(x), g.select_outputs(residual)
            residual = g.add(x, residual)
            x = self._feed_forward(g, layer, g.norm(residual, layer.ffn_norm))
            x = g.add(x, residual)
        return g.matmul(self.output, g.norm(x, self.output_norm))

    def _qkv(self, g: Pass, layer: Layer, x: int) -> tuple[int, int, int]:
        """q [head_dim, n_head, n], k [head_dim, n_head_kv, n] and v [n_embd_kv, n]."""
        h = self.hparams
        if layer.wqkv:
            whole = g.linear(layer.wqkv, x, layer.wqkv_bias)
            q = g.heads_at(whole, h.n_head, 0)
            k = g.heads_at(whole, h.n_head_kv, h.n_embd_q)
            v = g.rows_at(whole, h.n_embd_kv, h.n_embd_q + h.n_embd_kv)
            return q, k, v
        q = g.heads(g.linear(layer.wq, x, layer.wq_bias), h.n_head)
        k = g.heads(g.linear(layer.wk, x, layer.wk_bias), h.n_head_kv)
        return q, k, g.linear(layer.wv, x, layer.wv_bias)

    def _feed_forward(self, g: Pass, layer: Layer, x: int) -> int:
        up = g.linear(layer.up, x, layer.up_bias)
        gate = g.linear(layer.gate, x, layer.gate_bias)
        return g.linear(layer.down, g.swiglu(gate, up), layer.down_bias)


def load(file: GgufFile, hparams: Hparams, weights: Weights, repack: bool) -> Architecture:
    """Takes the file's weights; ModelFileError or ModelUnsupported where they do not fit."""
    metadata = Metadata(file, hparams.architecture)
    if metadata.integer("expert_count", 0, least=0):
        raise ModelUnsupported(f"{file.path} is a mixture of experts, which is not implemented")
    if repack:
        weights.repack()
    embedding = weights.info("token_embd.weight")
    n_vocab = embedding.shape[1] if embedding and len(embedding.shape) == 2 else 1
    token_embd = weights.table("token_embd.weight", hparams.n_embd, n_vocab)
    output = weights.optional("output.weight", hparams.n_embd, n_vocab)
    rope_short, rope_long = _rope_factors(metadata, hparams, weights)
    architecture = Architecture(
        hparams=hparams,
        token_embd=token_embd,
        output_norm=weights.require("output_norm.weight", hparams.n_embd),
        output=output or weights.require("token_embd.weight", hparams.n_embd, n_vocab),
        rope_short=rope_short,
        rope_long=rope_long,
        layers=tuple(_layer(metadata, hparams, weights, i) for i in range(hparams.n_layer)),
        n_vocab=n_vocab,
    )
    weights.refuse_unused(IGNORED)
    return architecture


def _rope_factors(metadata: Metadata, hparams: Hparams, weights: Weights) -> tuple[int, int]:
    """Divisors of the rotary frequencies [head_dim / 2], for short and for long contexts."""
    half = hparams.head_dim // 2
    if metadata.text("rope.scaling.type", "linear") == RopeScaling.LONGROPE.value:
        short = weights.optional("rope_factors_short.weight", half)
        return short, weights.optional("rope_factors_long.weight", half)
    factors = weights.optional("rope_freqs.weight", half)
    return factors, factors


def _layer(metadata: Metadata, h: Hparams, weights: Weights, index: int) -> Layer:
    n_ff = metadata.integer("feed_forward_length")

    def matrix(name: str, n_in: int, n_out: int) -> int:
        return weights.require(f"blk.{index}.{name}.weight", n_in, n_out)

    def bias(name: str, n_out: int) -> int:
        return weights.optional(f"blk.{index}.{name}.bias", n_out)

    n_qkv = h.n_embd_q + 2 * h.n_embd_kv
    wqkv = weights.optional(f"blk.{index}.attn_qkv.weight", h.n_embd, n_qkv)
    return Layer(
        attn_norm=weights.require(f"blk.{index}.attn_norm.weight", h.n_embd),
        wqkv=wqkv,
        wqkv_bias=bias("attn_qkv", n_qkv),
        wq=0 if wqkv else matrix("attn_q", h.n_embd, h.n_embd_q),
        wq_bias=0 if wqkv else bias("attn_q", h.n_embd_q),
        wk=0 if wqkv else matrix("attn_k", h.n_embd, h.n_embd_kv),
        wk_bias=0 if wqkv else bias("attn_k", h.n_embd_kv),
        wv=0 if wqkv else matrix("attn_v", h.n_embd, h.n_embd_kv),
        wv_bias=0 if wqkv else bias("attn_v", h.n_embd_kv),
        wo=matrix("attn_output", h.n_embd_q, h.n_embd),
        wo_bias=bias("attn_output", h.n_embd),
        ffn_norm=weights.require(f"blk.{index}.ffn_norm.weight", h.n_embd),
        gate=matrix("ffn_gate", h.n_embd, n_ff),
        gate_bias=bias("ffn_gate", n_ff),
        up=matrix("ffn_up", h.n_embd, n_ff),
        up_bias=bias("ffn_up", n_ff),
        down=matrix("ffn_down", n_ff, h.n_embd),
        down_bias=bias("ffn_down", h.n_embd),
    )
