"""The `mistral3` architecture: `llama` whose queries grow with their positions.

YaRN's bounds, and whether it changes the length of queries and keys, are the file's.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from isthmus.model.blocks import Decoder, Part, Sequential
from isthmus.model.hparams import Family, Rope, RopeKind
from isthmus.model.loader import BlockLoader, Loader
from isthmus.model.metadata import Metadata

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
    if not scale:
        return 0
    factors = _factors(b.hparams.n_ctx_train, b.hparams.rope.n_ctx_original, scale)
    return b.weights.constant("temperature", factors)


def _factors(n: int, n_original: int, scale: float) -> npt.NDArray[np.float32]:
    """1 + scale * log(1 + the number of original contexts before a position)."""
    n_before = np.floor(np.arange(n, dtype=np.float32) / np.float32(n_original))
    factors = np.log(n_before.astype(np.float64) + 1.0) * float(np.float32(scale)) + 1.0
    return np.asarray(factors, np.float32)


def _rope(metadata: Metadata, rope: Rope) -> Rope:
    """What only YaRN reads, in F32 as libllama computes it (`llama-context.cpp`)."""
    share = metadata.number("rope.scaling.yarn_log_multiplier", 0.0)
    attn_factor = np.float32(rope.attn_factor)
    if share and rope.ext_factor:
        factor = np.float32(1) / np.float32(rope.freq_scale)
        usual = _length(factor, 1.0)
        attn_factor *= usual / _length(factor, share) * (np.float32(1) / usual)
    return replace(
        rope,
        attn_factor=float(attn_factor),
        beta_fast=metadata.number("rope.scaling.yarn_beta_fast", rope.beta_fast),
        beta_slow=metadata.number("rope.scaling.yarn_beta_slow", rope.beta_slow),
    )


def _length(factor: np.float32, share: float) -> np.float32:
    """How much longer queries and keys are in a context that was stretched by `factor`."""
    if factor <= 1:
        return np.float32(1)
    log = np.float32(math.log(factor))
    return np.float32(0.1) * np.float32(share) * log + np.float32(1)
