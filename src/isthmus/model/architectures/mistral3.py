"""The `mistral3` architecture: `llama` whose queries grow with their positions.

YaRN's bounds, and whether it changes the length of queries and keys, are the file's.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from isthmus.model.blocks import Decoder, Part, Sequential
from isthmus.model.loading import BlockLoader, Loader
from isthmus.model.shape import yarn
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import Rope, RopeKind
from isthmus.model.shape.metadata import Metadata

FAMILY = Family(
    models="Ministral 3",
    features="YaRN with bounds of its own, a temperature that grows with positions",
    rope=RopeKind.NORMAL,
)


def load(file: Loader) -> Decoder:
    """Takes the file's weights; ModelFileError or ModelUnsupported where they do not fit."""
    return file.decoder(_block)


def _block(b: BlockLoader) -> Part:
    rotary = b.rotary()
    return Sequential(
        attn_norm=b.rms_norm("attn_norm"),
        attention=b.attention(
            rotary=replace(rotary, rope=_rope(b.metadata, rotary.rope)),
            temperature=_temperature(b),
        ),
        ffn_norm=b.rms_norm("ffn_norm"),
        feed_forward=b.experts(b.n_ff) if b.hparams.n_expert else b.gated(),
    )


def _temperature(b: BlockLoader) -> int:
    """F32 [n_ctx_train]; 0 if the file has none."""
    scale = b.metadata.number("attention.temperature_scale", 0.0)
    return b.temperature(scale, b.hparams.rope.n_ctx_original) if scale else 0


def _rope(metadata: Metadata, rope: Rope) -> Rope:
    """What only YaRN reads."""
    share = metadata.number("rope.scaling.yarn_log_multiplier", 0.0)
    attn_factor = np.float32(rope.attn_factor)
    if share and rope.ext_factor:
        factor = yarn.stretch(rope)
        usual = yarn.length(factor, 1.0)
        attn_factor *= usual / yarn.length(factor, share) * (np.float32(1) / usual)
    return replace(yarn.with_bounds(metadata, rope), attn_factor=float(attn_factor))
