"""The `smollm3` architecture: `llama` whose every fourth layer rotates no positions in."""

from __future__ import annotations

from isthmus.model.blocks import Decoder, Part, Sequential
from isthmus.model.loading import BlockLoader, Loader
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import RopeKind

FAMILY = Family(
    models="SmolLM3 3B",
    features="no positions in every fourth layer",
    rope=RopeKind.NORMAL,
)
_PERIOD = 4


def load(file: Loader) -> Decoder:
    """Takes the file's weights; ModelFileError or ModelUnsupported where they do not fit."""
    return file.decoder(_block)


def _block(b: BlockLoader) -> Part:
    rotated = (b.layer + 1) % _PERIOD != 0
    return Sequential(
        attn_norm=b.rms_norm("attn_norm"),
        attention=b.attention() if rotated else b.attention(rotary=None),
        ffn_norm=b.rms_norm("ffn_norm"),
        feed_forward=b.gated(),
    )
