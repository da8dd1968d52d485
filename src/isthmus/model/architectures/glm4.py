"""The `glm4` architecture: norms on both sides, a part of each head rotated, fused gate and up."""

from __future__ import annotations

from isthmus.model.blocks import Decoder, Part, Rotary, Sandwich
from isthmus.model.loading import BlockLoader, Loader
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import RopeKind

FAMILY = Family(
    models="GLM-4-0414 and GLM-Z1 (9B, 32B), the text part of GLM-4.1V and GLM-OCR",
    features="norms on both sides, partial rotary, biases of q, k and v, fused gate and up",
    rope=RopeKind.NORMAL,
    partial_rotary=True,
)


def load(file: Loader) -> Decoder:
    """Takes the file's weights; ModelFileError or ModelUnsupported where they do not fit."""
    return file.decoder(_block)


def _block(b: BlockLoader) -> Part:
    return Sandwich(
        attn_norm=b.rms_norm("attn_norm"),
        attention=b.attention(rotary=b.text_rotary() or Rotary(b.hparams.rope)),
        attn_post_norm=b.rms_norm("post_attention_norm"),
        ffn_norm=b.rms_norm("ffn_norm"),
        feed_forward=b.fused_gated(),
        ffn_post_norm=b.rms_norm("post_ffw_norm"),
    )
