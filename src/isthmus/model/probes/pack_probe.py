"""Has a prompt the same bits in one pass with others? Asked of the library, not a table.

Attention is computed for each session by itself, and all else token by token, but products, of
which a pass over several prompts has more columns: `MAX_PACKED` at most. One tensor of each type
and shape among the model's weights is multiplied with so many, all at once and in parts. The rows
of the vocabulary are not: they are multiplied with one column of each session, which is what the
batch probe asks about.
"""

from __future__ import annotations

from itertools import accumulate, pairwise

import numpy as np

from isthmus.device.base import Backend, Device
from isthmus.model.files.weights import Weights
from isthmus.model.probes.batch_probe import Kind, matrices_of, product

MAX_PACKED = 256
"""Tokens in one pass over several prompts: with more, the weights' way is too short to matter."""
_PARTS = (2, 31, 64, 159)


def packs_exactly(
    device: Device, backend: Backend, weights: Weights, n_vocab: int, *, with_vectors: bool = False
) -> bool:
    """Whether a product of `MAX_PACKED` columns at most has the bits of fewer, not of one."""
    matrices = matrices_of(weights, with_routers=True, with_vectors=with_vectors)
    return all(
        _is_exact(device, backend, tensor, kind)
        for kind, tensor in matrices.items()
        if kind.n != n_vocab
    )


def _is_exact(device: Device, backend: Backend, matrix: int, kind: Kind) -> bool:
    columns = np.random.default_rng(0).standard_normal((MAX_PACKED, kind.n_in), dtype=np.float32)
    parts = (
        product(device, backend, matrix, kind, columns[begin:end])
        for begin, end in pairwise(accumulate(_PARTS, initial=0))
    )
    return product(device, backend, matrix, kind, columns) == b"".join(parts)
