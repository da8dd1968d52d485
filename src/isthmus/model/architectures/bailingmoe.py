"""The `bailingmoe` architecture: `llama` with experts, and one that every token takes."""

from __future__ import annotations

from isthmus.model.blocks import Decoder, Part, Sequential
from isthmus.model.loading import BlockLoader, Loader
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import Gating, RopeKind

FAMILY = Family(
    models="Ling Lite and Plus",
    features="experts, a shared expert",
    rope=RopeKind.NORMAL,
)


def load(file: Loader) -> Decoder:
    """Takes the file's weights; ModelFileError or ModelUnsupported where they do not fit."""
    return file.decoder(_block)


def _block(b: BlockLoader) -> Part:
    return Sequential(
        attn_norm=b.rms_norm("attn_norm"),
        attention=b.attention(rotary=b.rotary()),
        ffn_norm=b.rms_norm("ffn_norm"),
        feed_forward=b.mixture(b.routing_said(Gating.SOFTMAX)),
    )
