"""Random numbers as a matrix or a KV cache holds them, for probes."""

from __future__ import annotations

import numpy as np

from isthmus.native._ggml import GgmlType

_PLAIN: dict[GgmlType, type[np.floating]] = {GgmlType.F32: np.float32, GgmlType.F16: np.float16}
_BLOCK = 32
"""Elements behind a scale in the quantised types here."""


def random_rows(dtype: GgmlType, width: int, n: int, seed: int = 1) -> bytes:
    """Bytes of [n][width] of type F32, F16, Q8_0 or Q4_0."""
    random = np.random.default_rng(seed)
    if dtype in _PLAIN:
        return random.standard_normal(width * n).astype(_PLAIN[dtype]).tobytes()
    n_blocks, nbytes = width * n // _BLOCK, _BLOCK if dtype is GgmlType.Q8_0 else _BLOCK // 2
    scales = random.uniform(0.01, 0.02, (n_blocks, 1)).astype(np.float16).view(np.uint8)
    quants = random.integers(0, 256, (n_blocks, nbytes), dtype=np.uint8)
    return np.hstack([scales, quants]).tobytes()
