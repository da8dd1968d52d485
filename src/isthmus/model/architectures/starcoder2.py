"""The `starcoder2` architecture: layer norms, biases everywhere, a feed-forward without a gate."""

from __future__ import annotations

from isthmus.model.blocks import Decoder, Part, Sequential
from isthmus.model.loading import BlockLoader, Loader
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import RopeKind

FAMILY = Family(
    models="StarCoder 2",
    features="layer norms, biases, GELU without a gate; its window is ignored",
    rope=RopeKind.NEOX,
)


def load(file: Loader) -> Decoder:
    """Takes the file's weights; ModelFileError or ModelUnsupported where they do not fit."""
    return file.decoder(_block, Loader.layer_norm)


def _block(b: BlockLoader) -> Part:
    return Sequential(
        attn_norm=b.layer_norm("attn_norm"),
        attention=b.attention(),
        ffn_norm=b.layer_norm("ffn_norm"),
        feed_forward=b.plain(),
    )
