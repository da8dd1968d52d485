"""Within which numbers of columns has a product the same bits? Asked of the library, not a table.

It depends on the library, the device, the type of the weights and their shape. One matrix of each
type and shape among a model's weights is multiplied with random columns: with each number of them
on a card, with some numbers on a processor, where one more product costs more, and between two of
these that differ with as many as it takes to find the bounds. Numbers whose products agree are a
candidate for a class. It becomes one if a column keeps its bits in other places, among others.

A matrix that gives zeros for random columns tells nothing: another one of its type and shape is
asked.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from isthmus.device.base import Backend, Device
from isthmus.device.graph import Graph, TensorContext
from isthmus.device.graph_allocator import GraphAllocator
from isthmus.errors import DeviceFailed
from isthmus.model.files.weights import Weights
from isthmus.model.probes.random_rows import random_rows
from isthmus.model.probes.widths import MAX_ON_HOST, MAX_ROWS, SINGLE, Width, Widths
from isthmus.native._ggml import GgmlType
from isthmus.units import DeviceAddr, align_up

_ALIGNMENT = 256
_COMMON = (GgmlType.Q4_0, GgmlType.Q8_0, GgmlType.F16, GgmlType.F32)
_COMMON_SHAPE = (1024, 128)
_PLACES = (0, 3, 11, 40, 95)
"""Columns whose bits a card is asked about."""
_SOME = (1, 2, 3, 4, 5, 8, 16, 32)
"""Numbers of columns that a processor is asked about first."""


@dataclass(frozen=True)
class Matrix:
    """Matrices [k, n] of one type, or stacks of `n_expert`, and how passes multiply with them."""

    tensors: tuple[int, ...]
    """All of this type and shape; one is asked, and another one if that tells nothing."""
    k: int
    n: int
    n_expert: int = 0
    n_used: int = 1
    """Matrices of a stack that each column is multiplied with."""
    spread: bool = False
    """Whether each of these has a column of its own, as behind a first stack."""
    apart: bool = False
    """Whether each column is a matrix of its own to the library: `Pass.separately`."""
    n_head: int = 0
    """Matrices of a stack of which each has columns of its own: see `Graph.matmul_heads`."""

    @property
    def is_plain(self) -> bool:
        """Whether it is one matrix, multiplied with all columns by one product."""
        return not (self.n_expert or self.n_head or self.apart)

    @property
    def n_columns(self) -> int:
        """Columns of k elements that make one of the probe's."""
        return self.n_head or (self.n_used if self.spread else 1)

    @property
    def n_products(self) -> int:
        """Products of n elements that come of it."""
        return self.n_head or self.n_used


def matrices(
    weights: Weights,
    n_used: int = 1,
    *,
    with_routers: bool = False,
    with_vectors: bool = False,
    apart: bool = False,
) -> list[Matrix]:
    """What passes multiply with. Vectors are matrices in an adapter of rank 1.

    Routers are multiplied with several columns in a prefill only: see `Pass.route`.
    """
    found: dict[tuple[GgmlType, tuple[int, ...], bool], list[int]] = {}
    for info in weights.multiplied:
        is_matrix = len(info.shape) > 1 or with_vectors
        if with_routers and is_matrix if info.name in weights.routers else is_matrix:
            shape = info.shape if len(info.shape) > 1 else (*info.shape, 1)
            key = (info.dtype, shape, info.name in weights.per_head)
            found.setdefault(key, []).append(weights.used(info.name))
    asked = []
    for (_, shape, per_head), tensors in found.items():
        matrix = Matrix(tuple(tensors), shape[0], shape[1], apart=apart)
        if per_head:
            matrix = replace(matrix, n_head=shape[2])
        elif len(shape) > 2:
            matrix = replace(matrix, n_expert=shape[2], n_used=n_used)
            asked.append(replace(matrix, spread=True))
        asked.append(matrix)
    return asked


def widths_of(device: Device, backend: Backend, asked: Iterable[Matrix], most: int) -> Widths:
    """The classes up to `most` columns in which every one of these products is exact.

    A card is asked about those in panels too; a processor gains nothing from them.
    """
    widths, asked = Widths((Width(1, most),)), [*asked]
    for matrix in asked:
        widths = widths.common(_widths_of(device, backend, matrix, most))
    if not device.has_own_memory or not all(it.is_plain for it in asked):
        return widths
    panelled = [wide for it in widths.classes if (wide := it.in_panels(most))]
    for matrix in asked:
        panelled = _in_panels(device, backend, matrix, most, panelled)
    return replace(widths, panelled=tuple(panelled))


def widths_of_types(device: Device, backend: Backend) -> dict[str, Widths]:
    """The classes of common types of weights, such as q8_0, by a matrix of 1,024 columns."""
    if device.everywhere is None:
        return {}
    most = MAX_ROWS if device.has_own_memory else MAX_ON_HOST
    return {dtype.name.lower(): _widths_of_type(device, backend, dtype, most) for dtype in _COMMON}


def _widths_of_type(device: Device, backend: Backend, dtype: GgmlType, most: int) -> Widths:
    k, n, library = _COMMON_SHAPE[0], _COMMON_SHAPE[1], device.library
    with contextlib.ExitStack() as stack:
        data = random_rows(dtype, k, n)
        buffer = stack.enter_context(device.allocate_inputs(len(data)))
        context = stack.enter_context(TensorContext(library, 1))
        tensor = context.tensor(dtype, k, n)
        buffer.place(tensor, buffer.base)
        buffer.stage[:] = data
        buffer.push(0, len(data))
        return _widths_of(device, backend, Matrix((tensor,), k, n), most)


def _widths_of(device: Device, backend: Backend, matrix: Matrix, most: int) -> Widths:
    for tensor in matrix.tensors:
        with _Probe(device, backend, matrix, tensor, most) as probe:
            if not probe.gives_numbers:
                return Widths()
            if not probe.gives_zeros:
                return probe.widths()
    return Widths((Width(1, most),))  # zeros stay zeros in any company


def _in_panels(
    device: Device, backend: Backend, matrix: Matrix, most: int, classes: list[Width]
) -> list[Width]:
    """Those of the classes in panels that have the bits of the panel's own class."""
    for tensor in matrix.tensors:
        with _Probe(device, backend, matrix, tensor, most) as probe:
            if not probe.gives_zeros:
                fuses = probe.fuses_exactly()
                alike = (it for it in classes if it.least > 1 or fuses)
                return [it for it in alike if probe.holds_in_panels(it)]
    return classes


class _Probe:
    """Products of one matrix with the first of a series of random columns. Owns their memory.

    ::

        columns f32 [2][most][k] │ which of a stack i32 [most, n_used] │ products f32 [most, n]

    The columns of each product lie in the other half than those of the one before. A device may
    record a graph that comes again as it was: on an H200, F16 products ended the process then.
    """

    def __init__(
        self, device: Device, backend: Backend, matrix: Matrix, tensor: int, most: int
    ) -> None:
        self._device, self._backend = device, backend
        self._matrix, self._tensor, self._most = matrix, tensor, most
        self._random = np.random.default_rng(0)
        self._dense = device.has_own_memory
        self._columns = self._some(most)
        self._known: dict[int, dict[int, bytes]] = {}
        """By number of columns: a hash of the result of some of them."""
        self._half = 0
        self._sent: list[object] = [None, None]
        """The columns that were sent last, in each half."""
        widest = 4 * matrix.k * matrix.n_columns
        self._half_nbytes = align_up(max(most * widest, 4 * matrix.n), _ALIGNMENT)
        self._chosen_at = 2 * self._half_nbytes
        self._result_at = align_up(self._chosen_at + 4 * most * matrix.n_used, _ALIGNMENT)
        self._column_nbytes = 4 * matrix.n * matrix.n_products
        with contextlib.ExitStack() as stack:
            self._buffer = stack.enter_context(
                device.allocate_inputs(self._result_at + most * self._column_nbytes)
            )
            self._memory = stack.enter_context(GraphAllocator(device.library, device.buffer_type))
            self._stack = stack.pop_all()

    def __enter__(self) -> _Probe:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @property
    def gives_numbers(self) -> bool:
        """Whether a product with the first column is neither infinite nor no number anywhere."""
        return bool(np.isfinite(self._first()).all())

    @property
    def gives_zeros(self) -> bool:
        """Whether that product is 0 everywhere."""
        return not self._first().any()

    def widths(self) -> Widths:
        """The classes, each proven; what is left of those that are not is a single column."""
        counts = range(1, self._most + 1) if self._dense else [n for n in _SOME if n <= self._most]
        ends = [end for a, b in pairwise(counts) for end in self._ends(a, b)]
        begins = [1, *(end + 1 for end in ends)]
        found = (Width(a, b) for a, b in zip(begins, [*ends, self._most], strict=True))
        proven = tuple(width for width in found if self._holds(width))
        if proven and proven[0].most > 1 and self._dense and not self._is_fused_exactly():
            proven = (SINGLE, Width(2, proven[0].most), *proven[1:])
        return Widths(proven if proven and proven[0].least == 1 else (SINGLE, *proven))

    def fuses_exactly(self) -> bool:
        """Whether a single column has the bits that it has among several with what follows its
        product: a card may compute a product of one column and that by one kernel."""
        kinds = ((True, False), (True, True), (False, True))
        return all(len({self._followed(n, *kind) for n in (1, 2)}) == 1 for kind in kinds)

    def _followed(self, n: int, gated: bool, biased: bool) -> bytes:
        """A hash of what follows the product of the first column, among `n`."""
        matrix, buffer = self._matrix, self._buffer
        self._send(0, self._columns["x"].tobytes())
        self._sent = [self._columns, None]
        self._send(self._half_nbytes, np.linspace(-1, 1, matrix.n, dtype=np.float32).tobytes())
        self._send(self._result_at, b"\xff" * self._column_nbytes)
        with Graph(self._device.library, 16) as graph:
            x = graph.tensor(GgmlType.F32, matrix.k, n)
            bias = graph.tensor(GgmlType.F32, matrix.n)
            buffer.place(x, buffer.base)
            buffer.place(bias, DeviceAddr(buffer.base + self._half_nbytes))
            products = []
            for _ in range(1 + gated):
                product = graph.matmul(self._tensor, x)
                products.append(graph.add(product, bias) if biased else product)
                graph.expand(products[-1])
            result = graph.swiglu(*products) if gated else products[0]
            buffer.place(result, DeviceAddr(buffer.base + self._result_at))
            graph.output(result)
            self._memory.allocate(graph)
            self._backend.compute(graph.pointer)
        buffer.pull(self._result_at, self._column_nbytes)
        return _hash(buffer.stage[self._result_at : self._result_at + self._column_nbytes])

    def holds_in_panels(self, width: Width) -> bool:
        """Whether the first column has the bits of the panel's class in any panel."""
        panel, most = width.panel, width.most
        wanted = self._results(width.least)[0]
        for n in sorted({2 * panel, max(2, most // panel // 2) * panel, most}):
            for place in {0, panel, n // 2, n - 1}:
                columns = self._some(n)
                columns[place] = self._columns[0]
                if _hash(next(self._multiply(columns, n, [place], panel))) != wanted:
                    return False
        return True

    def _is_fused_exactly(self) -> bool:
        return not self._matrix.is_plain or self.fuses_exactly()

    def _first(self) -> npt.NDArray[np.float32]:
        return np.frombuffer(next(self._multiply(self._columns, 1, [0])), np.float32).copy()

    def _ends(self, a: int, b: int) -> list[int]:
        """The numbers from `a` on and below `b` that are the last one of a candidate."""
        if self._agree(a, b):
            return []
        if b - a == 1:
            return [a]
        middle = (a + b) // 2
        return [*self._ends(a, middle), *self._ends(middle, b)]

    def _agree(self, a: int, b: int) -> bool:
        fewer, more = self._results(a), self._results(b)
        return all(more.get(place, result) == result for place, result in fewer.items())

    def _results(self, n: int) -> dict[int, bytes]:
        if n not in self._known:
            places = [p for p in _PLACES if p < n] if self._dense else range(n)
            results = self._multiply(self._columns, n, places)
            self._known[n] = {p: _hash(it) for p, it in zip(places, results, strict=True)}
        return self._known[n]

    def _holds(self, width: Width) -> bool:
        """Whether the first column has its bits wherever it is put among any others."""
        counts = {width.least, (width.least + width.most) // 2, width.most} - {1}
        wanted = self._results(width.least)[0]
        for n in sorted(counts) if self._dense else [width.most][: len(counts)]:
            for place in {0, n // 2, n - 1} if self._dense else {n - 1}:
                columns = self._some(n)
                columns[place] = self._columns[0]
                if _hash(next(self._multiply(columns, n, [place]))) != wanted:
                    return False
        return True

    def _some(self, n: int) -> npt.NDArray[np.void]:
        """[n]: random columns, and which matrices of a stack they are multiplied with."""
        matrix, random = self._matrix, self._random
        shape = (matrix.n_columns, matrix.k)
        made = np.empty(n, [("x", np.float32, shape), ("e", np.int32, matrix.n_used)])
        made["x"] = random.standard_normal(made["x"].shape, dtype=np.float32)
        if matrix.n_expert:
            order = random.random((n, matrix.n_expert)).argsort(1)
            made["e"] = order[:, : matrix.n_used]
        return made

    def _multiply(
        self, columns: npt.NDArray[np.void], n: int, places: Sequence[int], panel: int = 0
    ) -> Iterator[memoryview]:
        """The bytes of the products of the first `n` columns, at some places, in panels or not.
        DeviceFailed if the device wrote nothing there."""
        self._half = 1 - self._half
        if self._sent[self._half] is not columns:
            self._send(self._half * self._half_nbytes, columns["x"].tobytes())
            self._sent[self._half] = columns
        if self._matrix.n_expert:
            self._send(self._chosen_at, columns["e"].tobytes())
        unwritten = b"\xff" * self._column_nbytes
        for place in places[:1]:
            self._send(self._place(place), unwritten)
        buffer = self._buffer
        with Graph(self._device.library, 8) as graph:
            result = self._write(graph, n, panel)
            buffer.place(result, DeviceAddr(buffer.base + self._result_at))
            graph.output(result)
            self._memory.allocate(graph)
            self._backend.compute(graph.pointer)
        for place in places:
            begin = self._place(place)
            buffer.pull(begin, self._column_nbytes)
            column = buffer.stage[begin : begin + self._column_nbytes]
            if column == unwritten:
                raise DeviceFailed(f"the device left column {place} of a product unwritten")
            yield column

    def _send(self, offset: int, data: bytes) -> None:
        self._buffer.stage[offset : offset + len(data)] = data
        self._buffer.push(offset, len(data))

    def _place(self, place: int) -> int:
        return self._result_at + place * self._column_nbytes

    def _write(self, graph: Graph, n: int, panel: int) -> int:
        matrix, buffer = self._matrix, self._buffer
        begin = DeviceAddr(buffer.base + self._half * self._half_nbytes)
        if matrix.n_head:
            x = graph.tensor(GgmlType.F32, matrix.k, matrix.n_head, n)
            buffer.place(x, begin)
            return graph.copied(graph.matmul_heads(self._tensor, x))
        if not matrix.n_expert:
            panel = 1 if matrix.apart else panel
            x = graph.tensor(GgmlType.F32, matrix.k, *((panel, n // panel) if panel else (n,)))
            buffer.place(x, begin)
            return graph.matmul(self._tensor, x)
        x = graph.tensor(GgmlType.F32, matrix.k, matrix.n_columns, n)
        chosen = graph.tensor(GgmlType.I32, matrix.n_used, n)
        buffer.place(x, begin)
        buffer.place(chosen, DeviceAddr(buffer.base + self._chosen_at))
        return graph.matmul_chosen(self._tensor, x, chosen)


def _hash(result: memoryview) -> bytes:
    return hashlib.blake2b(result, digest_size=16).digest()
