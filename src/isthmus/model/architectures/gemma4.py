"""The `gemma4` architecture: layers of two shapes, caches that layers share, per-layer embeddings.

Layers that see a window have heads of their own size, and the last layers read the caches of
earlier ones. Some files have experts beside the feed-forward network of each layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import cast

from isthmus.device.graph import Graph
from isthmus.model.blocks import Decoder, NormedValues, Part, Rotary, Sandwich
from isthmus.model.blocks.experts import ExpertsBeside, ScaledRouter
from isthmus.model.blocks.per_layer import (
    PerLayerTrunk,
    PerLayerUpdate,
    load_inputs,
    load_update,
    per_layer_width,
)
from isthmus.model.loading import BlockLoader, Loader
from isthmus.model.passes.forward import Pass
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import RopeKind
from isthmus.model.shape.reading import heads_by_kind, require_rotary

FAMILY = Family(
    models="Gemma 4 (E2B, E4B, 12B, 26B-A4B, 31B), text",
    features="heads by layer, shared caches, per-layer embeddings, experts beside the network",
    rope=RopeKind.NEOX,
    partial_rotary=True,
    window_period=6,
    heads=heads_by_kind,
)


@dataclass(frozen=True)
class Layer:
    """A block, then what the layer's own embedding adds, then a factor; 0: there is none."""

    block: Part
    update: PerLayerUpdate | None
    scale: int

    def __call__(self, g: Pass, x: int, part: int = 0) -> int:
        x = self.block(g, x)
        if self.update:
            x = self.update(g, x, part)
        return g.mul(x, self.scale) if self.scale else x


def load(file: Loader) -> Decoder:
    """Takes the file's weights; ModelFileError or ModelUnsupported where they do not fit."""
    metadata = file.metadata
    metadata.integer("attention.sliding_window")  # without one, a layer would see nothing
    decoder = file.decoder(
        _layer,
        embedding_scale=math.sqrt(file.hparams.n_embd),
        logits_soft_cap=metadata.number("final_logit_softcapping", 30.0),
    )
    if not per_layer_width(metadata):
        return decoder
    inputs = load_inputs(file, decoder.n_vocab)
    layers = cast("tuple[Layer, ...]", decoder.blocks)
    return replace(decoder, blocks=(PerLayerTrunk(inputs, layers),))


def _layer(b: BlockLoader) -> Layer:
    update = load_update(b) if per_layer_width(b.metadata) else None
    has_experts = b.has("ffn_gate_inp")
    block = Sandwich(
        attn_norm=b.rms_norm("attn_norm"),
        attention=b.attention(
            qkv=_qkv(b), scores=b.scores(scale=1.0, windowed=b.windowed), **_norms(b)
        ),
        attn_post_norm=b.rms_norm("post_attention_norm"),
        ffn_norm=None if has_experts else b.rms_norm("ffn_norm"),
        feed_forward=_experts(b) if has_experts else b.gated(Graph.geglu),
        ffn_post_norm=b.rms_norm("post_ffw_norm"),
    )
    return Layer(block, update, b.optional("layer_output_scale.weight", 1))


def _qkv(b: BlockLoader) -> NormedValues:
    n_embd, heads = b.hparams.n_embd, b.heads
    q = b.linear("attn_q", n_embd, heads.n_embd_q)
    if heads.keys != 2 * b.layer:
        b.pass_over("attn_k.weight", "attn_v.weight", "attn_k_norm.weight")
        return NormedValues(heads, q, None, None)
    v = b.linear("attn_v", n_embd, heads.n_embd_v) if b.has("attn_v") else None
    return NormedValues(heads, q, b.linear("attn_k", n_embd, heads.n_embd_k), v)


def _norms(b: BlockLoader) -> dict[str, Part]:
    """The norms and the rotation of queries and keys, as fields of `Attention`."""
    norms: dict[str, Part] = {"rotary": _rotary(b)}
    norms["q_norm"] = b.rms_norm("attn_q_norm", b.heads.dim)
    if b.heads.keys == 2 * b.layer:
        norms["k_norm"] = b.rms_norm("attn_k_norm", b.heads.dim)
    return norms


def _rotary(b: BlockLoader) -> Rotary:
    rope, factors = b.hparams.rope, 0
    if b.windowed:
        n_dims = b.metadata.integer("rope.dimension_count_swa", rope.n_dims)
        base = b.metadata.number("rope.freq_base_swa", rope.freq_base)
        rope = replace(rope, n_dims=n_dims, freq_base=base)
    else:
        factors = b.weights.require("rope_freqs.weight", b.heads.dim // 2)
    require_rotary(b.metadata, FAMILY, b.heads.dim, rope.n_dims)
    return Rotary(rope, factors, factors)


def _experts(b: BlockLoader) -> ExpertsBeside:
    routing = b.routing()
    router = ScaledRouter(routing.router, b.vector("ffn_gate_inp.scale"))
    routing = replace(routing, router=router)
    return ExpertsBeside(
        norm=b.rms_norm("ffn_norm"),
        dense=b.gated(Graph.geglu),
        post_norm=b.rms_norm("post_ffw_norm_1"),
        experts_norm=b.rms_norm("pre_ffw_norm_2"),
        experts=b.experts(b.n_ff_expert, routing, Graph.geglu, scaled=True),
        experts_post_norm=b.rms_norm("post_ffw_norm_2"),
    )
