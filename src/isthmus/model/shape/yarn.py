"""What files say of YaRN, and of a temperature that grows with positions.

All of it is in F32, as libllama computes it (`llama-context.cpp`).
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from isthmus.model.shape.hparams import Rope
from isthmus.model.shape.metadata import Metadata


def with_bounds(metadata: Metadata, rope: Rope) -> Rope:
    """The rope with the file's bounds of YaRN, if it says some."""
    return replace(
        rope,
        beta_fast=metadata.number("rope.scaling.yarn_beta_fast", rope.beta_fast),
        beta_slow=metadata.number("rope.scaling.yarn_beta_slow", rope.beta_slow),
    )


def stretch(rope: Rope) -> np.float32:
    """By how much positions are stretched."""
    return np.float32(1) / np.float32(rope.freq_scale)


def length(factor: np.float32, share: float) -> np.float32:
    """How much longer queries and keys are in a context that was stretched by `factor`."""
    if factor <= 1:
        return np.float32(1)
    log = np.float32(math.log(factor))
    return np.float32(0.1) * np.float32(share) * log + np.float32(1)


def temperatures(n: int, every: int, scale: float) -> npt.NDArray[np.float32]:
    """F32 [n]: 1 + scale * log(1 + how many times `every` tokens come before a position)."""
    n_before = np.floor(np.arange(n, dtype=np.float32) / np.float32(every))
    factors = np.log(n_before.astype(np.float64) + 1.0) * float(np.float32(scale)) + 1.0
    return np.asarray(factors, np.float32)
