"""The `phi3` architecture: fused matrices, and rope factors for short and for long contexts.

The files' sliding window is not applied, as libllama does not: many say a wrong one
(https://github.com/ggml-org/llama.cpp/pull/13676).
"""

from __future__ import annotations

from isthmus.model.blocks import Decoder, Part, Rotary, Sequential
from isthmus.model.loading import BlockLoader, Loader
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import RopeKind

FAMILY = Family(
    models="Phi 3, 3.5 and 4, Phi 4 mini",
    features="fused q, k and v, fused gate and up, LongRoPE, partial rotary; its window is ignored",
    rope=RopeKind.NEOX,
    partial_rotary=True,
)


def load(file: Loader) -> Decoder:
    """Takes the file's weights; ModelFileError or ModelUnsupported where they do not fit."""
    return file.decoder(_block)


def _block(b: BlockLoader) -> Part:
    half = b.hparams.rope.n_dims // 2
    factors = [b.weights.optional(f"rope_factors_{it}.weight", half) for it in ("short", "long")]
    return Sequential(
        attn_norm=b.rms_norm("attn_norm"),
        attention=b.attention(
            q_scale=b.heads.scale,
            scores=b.scores(scale=1.0),
            rotary=Rotary(b.hparams.rope, *factors),
        ),
        ffn_norm=b.rms_norm("ffn_norm"),
        feed_forward=b.fused_gated(),
    )
