"""The `seed_oss` architecture: `qwen2` with another name for the second norm."""

from __future__ import annotations

from isthmus.model.blocks import Decoder, Part, Sequential
from isthmus.model.loading import BlockLoader, Loader
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import RopeKind

FAMILY = Family(
    models="Seed-OSS 36B",
    features="biases of q, k and v, heads wider than the embedding",
    rope=RopeKind.NEOX,
)


def load(file: Loader) -> Decoder:
    """Takes the file's weights; ModelFileError or ModelUnsupported where they do not fit."""
    return file.decoder(_block)


def _block(b: BlockLoader) -> Part:
    return Sequential(
        attn_norm=b.rms_norm("attn_norm"),
        attention=b.attention(),
        ffn_norm=b.rms_norm("post_attention_norm"),
        feed_forward=b.gated(),
    )
