"""The `qwen3vl` architecture, for text: `qwen3` with M-RoPE, whose axes are interleaved."""

from __future__ import annotations

from isthmus.errors import ModelFileError
from isthmus.model.blocks import Decoder, Part, Rotary, Sequential
from isthmus.model.loading import BlockLoader, Loader
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import RopeKind

FAMILY = Family(
    models="Qwen3-VL, dense, without images",
    features="norms of q and k, interleaved M-RoPE",
    rope=RopeKind.NEOX,
)


def load(file: Loader) -> Decoder:
    """Takes the file's weights; ModelFileError or ModelUnsupported where they do not fit."""
    return file.decoder(_block)


def _block(b: BlockLoader) -> Part:
    return Sequential(
        attn_norm=b.rms_norm("attn_norm"),
        attention=b.attention(rotary=interleaved_rotary(b), **b.head_norms()),
        ffn_norm=b.rms_norm("ffn_norm"),
        feed_forward=b.gated(),
    )


def interleaved_rotary(b: BlockLoader) -> Rotary:
    """M-RoPE for text, whose axes take turns. ModelFileError if the file has none."""
    rotary = b.text_rotary(interleaved=True)
    if rotary is None:
        raise ModelFileError(
            f"{b.metadata.path} has no rope.dimension_sections for time and height"
        )
    return rotary
