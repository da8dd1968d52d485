"""The k most probable tokens of a step, found by the device in the pass that computes the logits.

A guest asks for them with `session_top_k` and then need not read its logits, which takes 20 to
60 µs where the vocabulary has 128,256 tokens.

::

    at the place in the guest's memory │ logit f32, token id i32 │ … k pairs, best first

No token exceeds one that is there. Equal logits are in no order, and some of the tokens that equal
the last one may be missing, because no kernel promises more about ties. A guest that needs the very
tokens of its own scan therefore asks for one more than it uses, and uses those that exceed the
last.

A row is searched in two stages. It is cut into pieces of up to 128 logits; the k pieces with the
greatest maxima hold k of the most probable tokens, so only those pieces are sorted. Sorting a whole
row of 128,256 takes 0.7 ms on a card.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np

from isthmus.device.base import Device
from isthmus.device.buffer import InputBuffer
from isthmus.device.graph import Graph
from isthmus.native._ggml import GgmlType
from isthmus.units import GuestPtr, HostAddr

MAX_TOP = 256
"""Candidates that a session may ask for."""
TOP_ALIGNMENT = 32
"""Bytes at a multiple of which a place for candidates lies."""
PAIR_NBYTES = 8
"""A candidate: its logit (F32) and its token id (I32)."""
N_NODES = 32
"""More than the operations that finding candidates adds to a graph."""
_LONGEST_PIECE = 128
_UNKNOWN = -1
"""The first token id where there are no candidates."""


@dataclass(frozen=True)
class Top:
    """Where a session's candidates go, after each pass that gives it logits."""

    k: int
    ptr: GuestPtr
    address: HostAddr
    """The byte at `ptr`."""

    @property
    def nbytes(self) -> int:
        """All candidates: f32 and i32 [k]."""
        return PAIR_NBYTES * self.k

    def expire(self) -> None:
        """Writes to the guest's memory that there are no candidates, until the next pass."""
        ctypes.c_int32.from_address(self.address + PAIR_NBYTES // 2).value = _UNKNOWN


class TopFinder:
    """Writes into graphs what finds candidates. Owns the ids of all tokens in device memory."""

    def __init__(self, device: Device, n_vocab: int) -> None:
        self._device = device
        self._n_vocab = n_vocab
        self._piece = min(n_vocab & -n_vocab, _LONGEST_PIECE)  # a power of two that divides it
        self._ids: InputBuffer | None = None
        self._can_find: bool | None = None

    @property
    def can_find(self) -> bool:
        """Whether the device finds candidates sooner than a guest does: it says that it is quick
        (`Device.finds_top`), and has the kernels."""
        if not self._device.finds_top:
            return False
        if self._can_find is None:
            self._can_find = self._device.compute_thread.run(self._has_kernels)
        return self._can_find

    def find(self, graph: Graph, logits: int, n: int, k: int) -> int:
        """F32 [2, k, n] of logits [n_vocab, n]: candidates of each column as in the module, the
        bits of token ids standing for numbers. `k` is at most `n_vocab`."""
        n_vocab, piece = self._n_vocab, self._piece
        width, ids, n_pieces = n_vocab, self._place_ids(graph), n_vocab // piece
        if k < n_pieces:
            best = graph.largest(graph.piece_maxima(logits, piece), k)
            logits = graph.get_rows(graph.reshape(logits, piece, n_pieces, n), best)
            ids = graph.get_rows(graph.reshape(ids, piece, n_pieces), graph.reshape(best, k * n, 1))
            width = piece * k
            chosen = graph.largest(graph.reshape(logits, width, n), k)
            ids = graph.get_rows(graph.reshape(ids, 1, width, n), chosen)
        else:
            chosen = graph.largest(logits, k)
            ids = graph.get_rows(graph.reshape(ids, 1, n_vocab), graph.reshape(chosen, k * n, 1))
            ids = graph.reshape(ids, 1, k, n)
        values = graph.get_rows(graph.reshape(logits, 1, width, n), chosen)
        order = graph.descending(graph.reshape(values, k, n))
        return graph.get_rows(graph.join_rows(values, ids), order)

    def close(self) -> None:
        """Frees the ids; graphs that use them must not run again."""
        if self._ids is not None:
            self._ids.close()

    def _place_ids(self, graph: Graph) -> int:
        """[n_vocab]: the ids of all tokens. As F32, since every device moves those as they are."""
        if self._ids is None:
            self._ids = self._device.allocate_inputs(4 * self._n_vocab)
            self._ids.stage[:] = np.arange(self._n_vocab, dtype=np.int32).tobytes()
            self._ids.push(0, 4 * self._n_vocab)
        tensor = graph.tensor(GgmlType.F32, self._n_vocab)
        self._ids.place(tensor, self._ids.base)
        return tensor

    def _has_kernels(self) -> bool:
        graph = Graph(self._device.library, 2 * N_NODES)
        try:
            ks = {1, min(2, self._n_vocab), min(MAX_TOP, self._n_vocab)}
            logits = [graph.tensor(GgmlType.F32, self._n_vocab, n) for n in range(1, len(ks) + 1)]
            for n, (column, k) in enumerate(zip(logits, ks, strict=True), 1):
                graph.output(self.find(graph, column, n, k))
            return not self._device.refuses(graph)
        finally:
            graph.close()
