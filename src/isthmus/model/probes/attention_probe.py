"""How may sessions share a kernel of attention? Asked of the library, not a table.

CUDA's vector kernel cuts the cache rows of each sequence into as many parts as keep the card busy,
and adds up part by part. How many there are depends on the number of sequences and on the cache
rows of the longest one, by rounding: with 32 heads on 132 processors, 4, 8, 12, … sequences are cut
alike, and 1, 2 or 5 are not. Here one sequence is attended to among every number of others, over
caches of several lengths. The numbers that give it the same bits each time are a `Joining`, if it
also keeps them in other places, beside shorter and longer ones, and beside none.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isthmus.device.base import Backend, Device
from isthmus.device.graph import Graph
from isthmus.device.graph_allocator import GraphAllocator
from isthmus.errors import DeviceFailed
from isthmus.model.passes.forward import Scores
from isthmus.model.passes.joining import Joining, vector_stride
from isthmus.model.passes.mask import MASKED
from isthmus.model.probes.random_rows import random_rows
from isthmus.model.shape.hparams import Heads
from isthmus.native._ggml import GgmlType
from isthmus.units import DeviceAddr, align_up

_ALIGNMENT = 256
_LENGTHS = (256, 512, 768, 1024, 2048, 4096, 8192)
"""Cache rows that a kernel is given."""
_MIN_KV = 1024
"""Cache rows from which on no length may matter. Reading so many that are masked costs little."""
_SHIFT = 32
"""Rows from one sequence's cache to the next one's: they overlap, and are all different."""
_PATTERN_ROWS = 1024
_MAX_GROUPS = 2
"""Candidates that are tried: the largest groups of numbers that agree."""


@dataclass(frozen=True)
class Kernel:
    """What decides which kernel computes attention, and what it computes."""

    kv_type: GgmlType
    scores: Scores

    @property
    def heads(self) -> Heads:
        """Whose attention it computes."""
        return self.scores.heads

    @property
    def planes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The plane of keys and that of values: which of two it is, and elements of a head."""
        heads = self.heads
        return (0, heads.dim), (int(heads.keys != heads.values), heads.value_dim)

    @property
    def widths(self) -> tuple[int, int]:
        """Elements in a row of keys, and of values if they have a plane of their own."""
        heads = self.heads
        return heads.n_embd_k, heads.n_embd_v


def try_joining(
    device: Device, backend: Backend, kernels: Sequence[Kernel], n_ctx: int, most: int
) -> Joining | None:
    """What all of these kernels can be given, for sessions of up to `n_ctx` tokens.

    None if no number of sequences up to `most` serves, or the device has no such kernel.
    """
    lengths = [n for n in _LENGTHS if n <= align_up(n_ctx, _LENGTHS[0])]
    sizes, joining = [*range(1, most + 1)], None
    for kernel in kernels:
        with _Probe(device, backend, kernel, lengths[-1], most) as probe:
            found = _sizes(probe, lengths, sizes) if probe.computes else []
        if not found:
            return None
        sizes = found
        joining = Joining(tuple(found), min(_MIN_KV, lengths[-1]), lengths[-1])
    return joining


def _sizes(probe: _Probe, lengths: Sequence[int], allowed: Sequence[int]) -> list[int]:
    """The numbers of sequences among which one has the same bits; empty if there is no pattern."""
    groups: dict[bytes, list[int]] = {}
    probe.show(lengths[-1])
    for size in allowed:
        groups.setdefault(probe.result(size, lengths[-1]), []).append(size)
    best: list[int] = []
    for group in sorted(groups.values(), key=_waste)[:_MAX_GROUPS]:
        sizes = _agreeing(probe, lengths, group)
        if sizes and probe.holds(sizes, lengths) and (not best or _waste(sizes) < _waste(best)):
            best = sizes
    return best


def _waste(sizes: Sequence[int]) -> int:
    """Sequences of nobody, if there were runs of each length up to 128, in runs of these sizes."""
    waste = 0
    for n in range(1, 129):
        n_left = n % sizes[-1] or sizes[-1]
        waste += min(size for size in sizes if size >= n_left) - n_left
        waste += (n - 1) // sizes[-1]  # a further kernel
    return waste


def _agreeing(probe: _Probe, lengths: Sequence[int], group: Sequence[int]) -> list[int]:
    """Those of a group that agree whatever a sequence sees of caches of whatever length."""
    sizes = [*group]
    for seen in (200, *lengths):
        probe.show(seen - 3)
        steady: bytes | None = None
        for n_kv in (it for it in lengths if it >= seen):
            results = {size: probe.result(size, n_kv) for size in sizes}
            wanted = results[sizes[-1]] if steady is None else steady
            sizes = [size for size in sizes if results[size] == wanted]
            if not sizes:
                return []
            if n_kv >= _MIN_KV:
                steady = wanted
    return sizes


class _Probe:
    """Attention of up to `most` sequences over random caches. Owns their memory.

    ::

        inputs │ queries f32 [most, n_embd_q] │ masks f16 [most, n_kv] │ results [most, n_embd_seen]
        caches │ keys [n_kv + 32 · most, n_embd_k] │ values [as many, n_embd_v]
    """

    def __init__(
        self, device: Device, backend: Backend, kernel: Kernel, n_kv: int, most: int
    ) -> None:
        heads = kernel.heads
        self._device, self._backend, self._kernel = device, backend, kernel
        self._n_kv, self._most = n_kv, most
        self._random = np.random.default_rng(0)
        self._row_nbytes = [
            device.library.ggml_row_size(kernel.kv_type, width) for width in kernel.widths
        ]
        self._masks_at = align_up(4 * heads.n_embd_q * most, _ALIGNMENT)
        self._results_at = self._masks_at + 2 * n_kv * most
        self._result_nbytes = 4 * heads.n_embd_seen
        n_rows = align_up(n_kv + _SHIFT * most, _PATTERN_ROWS)
        self._plane_nbytes = align_up(n_rows * max(self._row_nbytes), _ALIGNMENT)
        with contextlib.ExitStack() as stack:
            self._inputs = stack.enter_context(
                device.allocate_inputs(self._results_at + most * self._result_nbytes)
            )
            self._caches = stack.enter_context(device.allocate_inputs(2 * self._plane_nbytes))
            self._memory = stack.enter_context(GraphAllocator(device.library, device.buffer_type))
            self._stack = stack.pop_all()
        self._fill()

    def __enter__(self) -> _Probe:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @property
    def computes(self) -> bool:
        """Whether the device has a kernel whose result can be placed, and which gives numbers."""
        with Graph(self._device.library, 8) as graph:
            seen = self._write(graph, 1, self._n_kv)
            graph.expand(seen)
            size_of = self._device.library.ggml_backend_buft_get_alloc_size
            nbytes = self._result_nbytes
            if self._device.refuses(graph) or size_of(self._device.buffer_type, seen) != nbytes:
                return False
        self.show(self._n_kv)
        self.result(1, self._n_kv)
        result = np.frombuffer(self._inputs.stage, np.float32, nbytes // 4, self._results_at)
        return bool(result.any() and np.isfinite(result).all())

    def show(self, n_rows: int, others: Sequence[int] = (), first: int = 0) -> None:
        """Has the first sequence see so many rows, from `first` on, and the others too or as many
        as are told of each."""
        masks = np.full((self._most, self._n_kv), MASKED)
        masks[:, first:n_rows] = 0
        for mask, n in zip(masks[1:], others, strict=False):
            mask[:] = MASKED
            mask[:n] = 0
        self._send(self._masks_at, masks)

    def result(self, size: int, n_kv: int, place: int = 0) -> bytes:
        """A hash of what the sequence at `place` gets among `size`, whose caches have `n_kv`."""
        nbytes = self._result_nbytes
        begin = self._results_at + place * nbytes
        unwritten = np.full(nbytes, 0xFF, np.uint8)
        self._send(begin, unwritten)
        with Graph(self._device.library, 8) as graph:
            seen = self._write(graph, size, n_kv)
            self._inputs.place(seen, DeviceAddr(self._inputs.base + self._results_at))
            graph.output(seen)
            self._memory.allocate(graph)
            self._backend.compute(graph.pointer)
        self._inputs.pull(begin, nbytes)
        result = self._inputs.stage[begin : begin + nbytes]
        if result == unwritten.data:
            raise DeviceFailed(f"the device left sequence {place} of an attention unwritten")
        return hashlib.blake2b(result).digest()

    def holds(self, sizes: Sequence[int], lengths: Sequence[int]) -> bool:
        """Whether the first sequence keeps its bits beside others of any length, or of none, and
        each sequence at another place is what it is as the last one of the largest run."""
        random, n_kv = self._random, lengths[-1]
        for first, seen in ((0, min(900, n_kv)), (150, min(700, n_kv)), (0, n_kv - 3)):
            results = set()
            for size in (sizes[0], sizes[len(sizes) // 2], sizes[-1]):
                for others in ([0] * size, random.integers(1, n_kv, size).tolist()):
                    self.show(seen, others, first)
                    results.add(self.result(size, n_kv))
            if len(results) > 1:
                return False
        self.show(n_kv - 3)
        return all(
            self.result(size, n_kv, size - 1) == self.result(sizes[-1], n_kv, size - 1)
            for size in (sizes[0], sizes[len(sizes) // 2])
        )

    def _fill(self) -> None:
        """Random queries, keys and values."""
        kernel = self._kernel
        shape = (self._most, kernel.heads.n_embd_q)
        self._send(0, self._random.standard_normal(shape, dtype=np.float32))
        for plane, width in enumerate(kernel.widths):
            data = random_rows(kernel.kv_type, width, _PATTERN_ROWS, seed=plane)
            count = self._plane_nbytes // len(data)
            begin = plane * self._plane_nbytes
            self._caches.stage[begin : begin + count * len(data)] = data * count
        self._caches.push(0, 2 * self._plane_nbytes)

    def _send(self, offset: int, array: np.ndarray) -> None:
        self._inputs.stage[offset : offset + array.nbytes] = array.tobytes()
        self._inputs.push(offset, array.nbytes)

    def _write(self, graph: Graph, size: int, n_kv: int) -> int:
        """[value_dim, n_head, 1, size]: the graph's one operation, not placed."""
        heads, kind, scores = self._kernel.heads, self._kernel.kv_type, self._kernel.scores
        inputs = self._inputs
        q = graph.tensor(GgmlType.F32, heads.dim, 1, heads.n, size)
        inputs.place(q, inputs.base)
        planes = []
        for plane, dim in self._kernel.planes:
            tensor = graph.tensor(kind, dim, n_kv, heads.n_kv, size)
            struct = graph.describe(tensor)
            struct.nb[1] = self._row_nbytes[plane]
            struct.nb[2] = graph.library.ggml_row_size(kind, dim)
            struct.nb[3] = _SHIFT * self._row_nbytes[plane]
            struct.buffer = self._caches.handle
            struct.data = self._caches.base + plane * self._plane_nbytes
            planes.append(tensor)
        mask = graph.tensor(GgmlType.F16, n_kv, 1, 1, size)
        seen = graph.flash_attention(
            q, planes[0], planes[1], mask, scores.scale, scores.soft_cap, scores.sinks
        )
        struct = graph.describe(mask)  # ggml asks for masks without gaps, and kernels do not
        struct.nb[1] = struct.nb[2] = vector_stride(n_kv)
        struct.nb[3] = 2 * self._n_kv
        struct.buffer, struct.data = inputs.handle, inputs.base + self._masks_at
        return seen
