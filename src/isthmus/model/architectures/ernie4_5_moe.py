"""The `ernie4_5-moe` architecture: `ernie4_5` with experts in some layers."""

from __future__ import annotations

from isthmus.model.blocks import Decoder, Part, Sequential
from isthmus.model.loading import BlockLoader, Loader
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import RopeKind

FAMILY = Family(
    models="ERNIE 4.5 with experts (21B-A3B, 300B-A47B)",
    features="experts with biases in every so many layers, a shared expert",
    rope=RopeKind.NORMAL,
)


def load(file: Loader) -> Decoder:
    """Takes the file's weights; ModelFileError or ModelUnsupported where they do not fit."""
    return file.decoder(_block)


def _block(b: BlockLoader) -> Part:
    return Sequential(
        attn_norm=b.rms_norm("attn_norm"),
        attention=b.attention(),
        ffn_norm=b.rms_norm("ffn_norm"),
        feed_forward=_experts(b) if _has_experts(b) else b.gated(),
    )


def _has_experts(b: BlockLoader) -> bool:
    every = b.metadata.integer("interleave_moe_layer_step")
    return not b.leads and (b.layer + 1) % every == 0


def _experts(b: BlockLoader) -> Part:
    scale = b.metadata.number("expert_weights_scale", 0.0) or 1.0
    n_ff_shared = b.metadata.integer("expert_shared_feed_forward_length", 0, least=0)
    return b.with_shared(b.experts(b.n_ff_expert, b.routing(scale=scale)), n_ff_shared)
