"""Checked operations of a guest's `compute` calls: what each costs, and how it is cut into slices.

A submission to the device cannot be interrupted, and everybody else waits for it. So operations run
in slices of about `SLICE_WORK`, between which deadlines, cancellation and others' jobs count. An
operation that is larger is cut along its rows. Each row is computed by itself, so no bit changes. A
matrix product is not cut, because its kernel, and with it its bits, depends on its shape.

Work is measured in multiplications of a large product. What a row or an element of each operation
costs was measured on one thread of an AMD EPYC with AVX-512 (20,000,000 multiplications take about
a millisecond), with rows of one element, broadcasting and odd sizes among the shapes. The figures
are the worst that were seen, so that an operation takes as long as its work says, or less.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from isthmus.abi import Op
from isthmus.model import Model
from isthmus.native._ggml import GgmlType
from isthmus.units import GuestPtr

SLICE_WORK = 1 << 28
"""Work that is submitted at once, about 13 ms."""
MAX_WORK_ONCE = 1 << 31
"""Work of an operation that cannot be cut, about 0.1 s."""
MAX_WORK = 1 << 33
"""Work of one call, about 0.4 s: its operations are checked and kept together."""
_OPERATION = 200_000
"""Work of describing and submitting any operation, about 10 µs."""
_ROW = {Op.ARGMAX: 60, Op.GET_ROWS: 260}
_ANY_ROW = 320
"""Work of a row beside its elements, about 16 ns."""
_ELEMENT = {
    Op.SOFTMAX: 30,
    Op.SILU: 8,
    Op.RMS_NORM: 22,
    Op.SCALE: 4,
    Op.ARGMAX: 14,
    Op.ADD: 4,
    Op.MUL: 12,
    Op.GET_ROWS: 24,
}
_REPEAT = 40
"""Work of repeating the second source once within a row."""
_WRITTEN = 10
"""Work of an element that is written to memory which nobody has touched before."""
_FROM_F16, _TO_F16 = 16, 48
"""Work of converting an element."""
_FACTOR_FROM_F16 = 112
"""Work of converting an element of a product's second source, which is converted as a whole: more
than the time it takes, so that the memory for it is less than 64 MiB."""
_PRODUCT, _COLUMN, _SOURCE0, _SOURCE1 = 90, 400, 4, 22
"""Work of an element of a matrix product beside its multiplications, of a column, and of reading an
element of each source; the second is converted to what the weights' type wants."""
_ROWS_MULTIPLE = 16
"""Rows that stay together, so that the parts of aligned tensors are aligned."""

Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Weight:
    """What a weight handle stands for."""

    model: Model
    name: str


@dataclass(frozen=True)
class Operand:
    """A checked tensor: `weight` is its tensor among a model's weights, or it lies at `ptr`."""

    dtype: GgmlType
    shape: Shape
    ptr: GuestPtr
    nbytes: int
    weight: int = 0

    @property
    def n_elements(self) -> int:
        """Elements in all dimensions."""
        return math.prod(self.shape)

    @property
    def n_rows(self) -> int:
        """Rows in all dimensions."""
        return math.prod(self.shape[1:])

    def overlaps(self, ptr: int, nbytes: int) -> bool:
        """Whether any byte of it is among those; a weight never is."""
        return not self.weight and self.ptr < ptr + nbytes and ptr < self.ptr + self.nbytes

    def rows(self, first: int, n: int) -> Operand:
        """`n` of its rows as a matrix, from row `first` on."""
        row_nbytes = self.nbytes // self.n_rows
        shape = (self.shape[0], n, 1, 1)
        return replace(
            self, shape=shape, ptr=GuestPtr(self.ptr + first * row_nbytes), nbytes=n * row_nbytes
        )

    def elements(self, first: int, n: int) -> Operand:
        """`n` elements of a vector, from element `first` on."""
        item_nbytes = self.nbytes // self.shape[0]
        ptr = GuestPtr(self.ptr + first * item_nbytes)
        return replace(self, shape=(n, 1, 1, 1), ptr=ptr, nbytes=n * item_nbytes)


@dataclass(frozen=True)
class Step:
    """A checked operation. `indices` are the row indices of GET_ROWS, i32."""

    op: Op
    dst: Operand
    src0: Operand
    src1: Operand | None
    param: float
    indices: bytes

    @property
    def work(self) -> int:
        """What it costs, in multiplications of a large product."""
        dst, src0, src1 = self.dst, self.src0, self.src1
        work = _OPERATION + _WRITTEN * dst.n_elements
        for source in (src0, src1):
            if source is not None and source.dtype is GgmlType.F16 and not source.weight:
                work += _FROM_F16 * source.n_elements
        if dst.dtype is GgmlType.F16:
            work += _TO_F16 * dst.n_elements
        if self.op is Op.MATMUL:
            assert src1 is not None
            work += (src0.shape[0] + _PRODUCT) * dst.n_elements + _COLUMN * src1.n_rows
            work += _FACTOR_FROM_F16 * src1.n_elements if src1.dtype is GgmlType.F16 else 0
            return work + _SOURCE0 * src0.n_elements + _SOURCE1 * src1.n_elements
        over = dst if self.op is Op.GET_ROWS else src0
        work += _ROW.get(self.op, _ANY_ROW) * over.n_rows + _ELEMENT[self.op] * over.n_elements
        if self.op in (Op.ADD, Op.MUL):
            assert src1 is not None
            work += _REPEAT * (src0.n_elements // src1.shape[0])
        return work

    @property
    def n_rows(self) -> int:
        """Rows that can be computed one by one with the same bits; 1 if it cannot be cut."""
        if self.op is Op.MATMUL:
            return 1
        if self.op in (Op.ADD, Op.MUL) and not self._repeats_rows_alike:
            return 1
        return self.dst.n_rows if self.op is Op.GET_ROWS else self.src0.n_rows

    @property
    def _repeats_rows_alike(self) -> bool:
        """Whether each row has a row of the second source, or all have the same."""
        assert self.src1 is not None
        return self.src1.n_rows in (1, self.src0.n_rows)

    def part(self, first: int, n: int) -> Step:
        """The operation on `n` of its rows, from row `first` on."""
        if self.op is Op.GET_ROWS:
            assert self.src1 is not None
            indices = self.indices[4 * first : 4 * (first + n)]
            src1 = self.src1.elements(first, n)
            return replace(self, dst=self.dst.rows(first, n), src1=src1, indices=indices)
        dst = self.dst.elements(first, n) if self.op is Op.ARGMAX else self.dst.rows(first, n)
        second = self.src1
        if second is not None and second.n_rows > 1:
            second = second.rows(first, n)
        return replace(self, dst=dst, src0=self.src0.rows(first, n), src1=second)

    def parts(self) -> Iterator[Step]:
        """The operation in parts of about `SLICE_WORK`, or whole if it cannot be cut."""
        n_parts = -(-self.work // SLICE_WORK)
        n_rows = self.n_rows
        n = max(-(-n_rows // n_parts), 1)
        n = -(-n // _ROWS_MULTIPLE) * _ROWS_MULTIPLE
        if n_parts == 1 or n >= n_rows:
            yield self
            return
        for first in range(0, n_rows, n):
            yield self.part(first, min(n, n_rows - first))


def is_too_large(steps: Sequence[Step]) -> bool:
    """Whether they are more than one call may ask for, or one of them is more than may run."""
    together = (step.work // max(step.n_rows // _ROWS_MULTIPLE, 1) for step in steps)
    return sum(step.work for step in steps) > MAX_WORK or max(together) > MAX_WORK_ONCE


def slices(steps: Sequence[Step]) -> list[list[Step]]:
    """The steps, cut where they can be, in groups of about `SLICE_WORK`."""
    groups: list[list[Step]] = [[]]
    left = SLICE_WORK
    for step in steps:
        for part in step.parts():
            work = part.work
            if groups[-1] and work > left:
                groups.append([])
                left = SLICE_WORK
            groups[-1].append(part)
            left -= work
    return groups
