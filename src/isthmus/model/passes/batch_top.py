"""Places of a batch's candidates: each session's, in its guest's memory; see `sampling/top.py`.

A batch finds equally many candidates for every row, since one graph serves any sessions. Candidates
that a session did not ask for go to a place that nobody reads.

::

    places i64 [n, k]: where each pair goes, in steps of 4 bytes │ unread f32 [2]: nobody reads it
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from isthmus.device.base import Device
from isthmus.device.buffer import Buffer
from isthmus.device.graph import Graph
from isthmus.model.passes.input_layout import Input, InputLayout
from isthmus.model.sampling.top import PAIR_NBYTES, Top
from isthmus.native._ggml import GgmlType

_SIZES = (2, 16, 64, 128, 256)
"""Candidates of each row, of which a batch has as many as its sessions need at most."""
_FLOAT = 4


def n_found(tops: Sequence[Top | None], n_vocab: int) -> int:
    """Candidates that a batch finds for each row of these; 0 if nobody asks for any."""
    most = max((top.k for top in tops if top is not None), default=0)
    return min(n_vocab, next(size for size in _SIZES if size >= most)) if most else 0


def by_row(
    tops: Sequence[Top | None], n_tokens: Sequence[int], order: Sequence[int | None]
) -> list[Top | None]:
    """Where the candidates of each row go: only those of a step's last token go anywhere.

    `tops` and `n_tokens` are those of steps, `order` has the number of each row's token in the
    order of the steps, None for a row of nobody.
    """
    each: list[Top | None] = []
    for top, n in zip(tops, n_tokens, strict=True):
        each += [*[None] * (n - 1), top]
    return [None if token is None else each[token] for token in order]


class BatchTop:
    """Owns the places of `n` rows with `k` candidates each; see the module."""

    def __init__(self, device: Device, everywhere: Buffer, n: int, k: int) -> None:
        self.n, self.k = n, k
        self._first = everywhere.base
        self._layout = layout = InputLayout(
            Input("places", GgmlType.I64, (n, k)), Input("unread", GgmlType.F32, (2,))
        )
        self._buffer = device.allocate_inputs(layout.nbytes)
        self._places = layout.array(self._buffer, "places")
        self._unread = (layout.address(self._buffer, "unread") - self._first) // _FLOAT

    def rows(self, graph: Graph) -> int:
        """I64 [k * n]: the places, as `Graph.set_rows` takes them."""
        return self._layout.place(graph, self._buffer, "places", self.k * self.n)

    def write(self, tops: Sequence[Top | None]) -> None:
        """Sets where the candidates of each row go."""
        self._places[:] = self._unread
        for row, top in enumerate(tops):
            if top is not None:
                first = (top.address - self._first) // _FLOAT
                last = first + top.k * PAIR_NBYTES // _FLOAT
                self._places[row, : top.k] = np.arange(first, last, PAIR_NBYTES // _FLOAT)
        self._buffer.push(0, self._layout.offset("unread"))

    def close(self) -> None:
        """Frees the places."""
        self._buffer.close()
