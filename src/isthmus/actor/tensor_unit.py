"""The `tensor` group of the guest ABI: operations on the guest's own bytes, in place.

A request goes through four steps; nothing runs before all of it was checked.

1. copy: descriptors and row indices are read once, so what was checked is what is used
2. check: types, shapes, bounds, alignment, overlap; ggml aborts the process on a bad shape
3. build: one graph, each result placed at its destination's address
4. compute, in slices between which whoever else waits for the device has a turn
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Callable, Generator, Iterator

import numpy as np

from isthmus.abi import (
    OPERATION,
    OPERATION_64,
    TENSOR,
    TENSOR_64,
    Dtype,
    Errno,
    Op,
    Operation,
    Tensor,
)
from isthmus.actor.handles import HandleTable
from isthmus.actor.operation import Operand, Shape, Step, Weight, is_too_large, slices
from isthmus.counters import Counters
from isthmus.device.base import Backend, Device
from isthmus.device.buffer import Binding, InputBuffer
from isthmus.device.graph import Graph
from isthmus.device.graph_allocator import GraphAllocator
from isthmus.errors import GuestFault
from isthmus.model import Session
from isthmus.native._ggml import GgmlType
from isthmus.units import MIB, DeviceAddr, GuestPtr, HostAddr, align_up
from isthmus.wasm.hostcalls import GuestMemory

MAX_OPERATIONS = 256
MAX_ROWS = 1 << 20
"""That the get_rows of one call may name: their numbers are copied and checked while no other
Python runs."""
_KEPT_NBYTES = 4 * MIB
"""Of memory for intermediate results that an actor keeps from call to call."""
_ALIGNMENT = 32
_BINARY = (Op.MATMUL, Op.ADD, Op.MUL, Op.GET_ROWS)
_OPS = {op.value for op in Op}
_DTYPES = {dtype.value for dtype in Dtype}
_FLOATS = (GgmlType.F32, GgmlType.F16)
_ITEM_NBYTES = {GgmlType.F32: 4, GgmlType.F16: 2, GgmlType.I32: 4}
_LARGEST = 1 << 31


def _require(condition: bool, code: Errno = Errno.EINVAL) -> None:
    if not condition:
        raise GuestFault(code)


class Checker:
    """Steps 1 and 2: from the guest's descriptors to steps that cannot go wrong."""

    def __init__(self, memory: GuestMemory, handles: HandleTable) -> None:
        self._memory = memory
        self._handles = handles
        self._operation_layout = OPERATION_64 if memory.is_64 else OPERATION
        self._tensor_layout = TENSOR_64 if memory.is_64 else TENSOR
        self._rows_left = 0

    def steps(self, ptr: int, count: int) -> list[Step]:
        """The operations at `ptr`; GuestFault where any of them is not good."""
        _require(1 <= count <= MAX_OPERATIONS)
        nbytes, self._rows_left = self._operation_layout.size, MAX_ROWS
        self._memory.check_aligned(ptr, count * nbytes, 4)
        steps = [self._step(ptr + index * nbytes) for index in range(count)]
        _require(not is_too_large(steps), Errno.ELIMIT)
        return steps

    def _step(self, ptr: int) -> Step:
        raw = Operation(*self._memory.unpack(self._operation_layout, ptr))
        _require(raw.op in _OPS and not (raw.reserved0 or raw.reserved1 or raw.reserved2))
        op = Op(raw.op)
        _require((op in _BINARY) == (raw.src1 != 0))
        dst, src0 = self._operand(raw.dst), self._operand(raw.src0)
        src1 = self._operand(raw.src1) if raw.src1 else None
        self._check_destination(dst, [src for src in (src0, src1) if src])
        _SHAPES[op](dst, src0, src1)
        self._check_types(op, dst, src0, src1)
        _require(math.isfinite(raw.param) and (op is not Op.RMS_NORM or raw.param >= 0))
        indices = self._indices(src0, src1) if op is Op.GET_ROWS and src1 else b""
        return Step(op, dst, src0, src1, raw.param, indices)

    def _operand(self, ptr: int) -> Operand:
        self._memory.check_aligned(ptr, self._tensor_layout.size, 4)
        raw = Tensor(*self._memory.unpack(self._tensor_layout, ptr))
        _require(raw.reserved == 0)
        if raw.weight:
            return self._weight(raw.weight)
        _require(raw.dtype in _DTYPES)
        dtype = GgmlType(raw.dtype)
        shape = (raw.ne0, raw.ne1, raw.ne2, raw.ne3)
        _require(all(1 <= n < _LARGEST for n in shape))
        nbytes = math.prod(shape) * _ITEM_NBYTES[dtype]
        self._memory.check_aligned(raw.data, nbytes, _ALIGNMENT)
        return Operand(dtype, shape, GuestPtr(raw.data), nbytes)

    def _weight(self, handle: int) -> Operand:
        weight = self._handles.get(handle, Weight)
        info = weight.model.weights.info(weight.name)
        assert info is not None
        tensor = weight.model.weights.tensor(weight.name)
        return Operand(info.dtype, _four(info.shape), GuestPtr(0), info.nbytes, tensor)

    def _check_destination(self, dst: Operand, sources: list[Operand]) -> None:
        _require(not dst.weight)
        for source in sources:
            _require(not source.overlaps(dst.ptr, dst.nbytes))
        for session in self._handles.all(Session):
            busy = dst.overlaps(session.ptr, session.layout.nbytes)
            _require(not busy, Errno.EBUSY)

    @staticmethod
    def _check_types(op: Op, dst: Operand, src0: Operand, src1: Operand | None) -> None:
        weight_allowed = op in (Op.MATMUL, Op.GET_ROWS)
        _require(weight_allowed if src0.weight else src0.dtype in _FLOATS)
        _require(src0.dtype not in (GgmlType.I32, GgmlType.I64))
        if src1:
            wanted = (GgmlType.I32,) if op is Op.GET_ROWS else _FLOATS
            _require(not src1.weight and src1.dtype in wanted)
        _require(dst.dtype in ((GgmlType.I32,) if op is Op.ARGMAX else _FLOATS))

    def _indices(self, table: Operand, rows: Operand) -> bytes:
        self._rows_left -= rows.shape[0]
        _require(self._rows_left >= 0, Errno.ELIMIT)
        data = self._memory.read(rows.ptr, rows.nbytes)
        indices = np.frombuffer(data, np.int32)
        _require(indices.min() >= 0 and indices.max() < table.shape[1])
        return data


class Copies:
    """The path that Isthmus exists to avoid: tensors staged in the device's own memory.

    For comparison only (`isthmus verify`). Owns one device buffer, kept from call to call.
    """

    def __init__(self, device: Device, memory: GuestMemory) -> None:
        self._device = device
        self._memory = memory
        self._buffer: InputBuffer | None = None
        self._top = 0
        self.nbytes = 0

    def begin(self, steps: list[Step]) -> None:
        """Makes room for every operand of `steps`."""
        operands = [o for step in steps for o in (step.dst, step.src0, step.src1) if o]
        wanted = sum(align_up(o.nbytes, 256) for o in operands if not o.weight)
        if self._buffer is None or self._buffer.nbytes < wanted:
            self.close()
            self._buffer = self._device.allocate_inputs(wanted)
        self._top = self.nbytes = 0

    def place(self, graph: Graph, tensor: int, operand: Operand, *, fill: bool) -> None:
        """Places a tensor in the device's memory, with the guest's bytes in it if `fill`."""
        assert self._buffer is not None
        self._buffer.place(tensor, DeviceAddr(self._buffer.base + self._top))
        self._top += align_up(operand.nbytes, 256)
        if fill:
            source = self._memory.check(operand.ptr, operand.nbytes)
            graph.library.ggml_backend_tensor_set(tensor, source, 0, operand.nbytes)
            self.nbytes += operand.nbytes

    def finish(self, graph: Graph, tensor: int, operand: Operand) -> None:
        """Brings a result back to the guest."""
        target = self._memory.check(operand.ptr, operand.nbytes)
        graph.library.ggml_backend_tensor_get(tensor, target, 0, operand.nbytes)
        self.nbytes += operand.nbytes

    def close(self) -> None:
        """Frees the buffer."""
        if self._buffer is not None:
            self._buffer.close()
            self._buffer = None


class TensorUnit:
    """Computes a guest's requests. One for each actor; owns the memory for intermediate results."""

    def __init__(
        self,
        device: Device,
        backend: Backend,
        binding: Binding,
        checker: Checker,
        counters: Counters,
        copies: Copies | None = None,
    ) -> None:
        self._device = device
        self._backend = backend
        self._binding = binding
        self._checker = checker
        self._counters = counters
        self._copies = copies
        self._memory = GraphAllocator(device.library, device.buffer_type)

    def jobs(self, ptr: int, count: int) -> Generator[None, None, None]:
        """Runs the `count` operations at `ptr`, one submission for each `next`.

        Raises GuestFault, and nothing ran; or DeviceFailed, and earlier submissions have run.
        """
        steps = self._checker.steps(ptr, count)
        groups = [[step] for step in steps] if self._copies else slices(steps)
        if len(groups) > 1:
            with self._built(steps, fill=False):
                pass
        for number, group in enumerate(groups):
            if number > 0:
                yield
            self._compute(group)
        if self._memory.nbytes > _KEPT_NBYTES:
            self._memory.close()
            self._memory = GraphAllocator(self._device.library, self._device.buffer_type)

    def _compute(self, steps: list[Step]) -> None:
        """One submission."""
        with self._built(steps) as (graph, results):
            self._memory.allocate(graph)
            self._counters.graphs_built += 1
            self._backend.compute(graph.pointer, self._binding)
            if self._copies:
                for tensor, operand in results:
                    self._copies.finish(graph, tensor, operand)
                self._counters.bytes_copied += self._copies.nbytes

    @contextlib.contextmanager
    def _built(
        self, steps: list[Step], *, fill: bool = True
    ) -> Iterator[tuple[Graph, list[tuple[int, Operand]]]]:
        """The graph of steps, and where each result lies. ENOTSUP if the device has no kernel.

        With `fill` it is to be computed, and copies get the guest's bytes.
        """
        copies = self._copies if fill else None
        with contextlib.ExitStack() as stack:
            graph = stack.enter_context(Graph(self._device.library, 8 * len(steps) + 16))
            builder = _Builder(graph, self._device, self._binding, copies, stack)
            if copies:
                copies.begin(steps)
            results = [(builder.add(step), step.dst) for step in steps]
            if self._device.refuses(graph):
                raise GuestFault(Errno.ENOTSUP)
            yield graph, results

    def close(self) -> None:
        """Frees what the unit owns."""
        self._memory.close()
        if self._copies:
            self._copies.close()


class _Builder:
    """Step 3. Kernels exist for F32 everywhere; F16 operands are converted on the device."""

    def __init__(
        self,
        graph: Graph,
        device: Device,
        binding: Binding,
        copies: Copies | None,
        stack: contextlib.ExitStack,
    ) -> None:
        self._g = graph
        self._device = device
        self._binding = binding
        self._copies = copies
        self._stack = stack

    def add(self, step: Step) -> int:
        """Adds a step to the graph and returns the tensor at its destination."""
        result = self._result(step)
        if step.dst.dtype is GgmlType.F16:
            target = self._leaf(step.dst, fill=False)
            result = self._g.copy_into(result, target)
        else:
            self._place(result, step.dst, fill=False)
        self._g.output(result)
        return result

    def _result(self, step: Step) -> int:
        g, op = self._g, step.op
        if op is Op.GET_ROWS:
            return g.get_rows(self._leaf(step.src0), self._indices(step))
        if op is Op.MATMUL:
            assert step.src1 is not None
            return g.matmul_f32(self._leaf(step.src0), self._float(step.src1))
        a = self._float(step.src0)
        if step.src1 is not None:
            b = self._float(step.src1)
            return g.add(a, b) if op is Op.ADD else g.mul(a, b)
        unary: dict[Op, Callable[[], int]] = {
            Op.SCALE: lambda: g.scale(a, step.param),
            Op.SILU: lambda: g.silu(a),
            Op.SOFTMAX: lambda: g.softmax(a),
            Op.RMS_NORM: lambda: g.rms_norm(a, step.param),
            Op.ARGMAX: lambda: g.argmax(a),
        }
        return unary[op]()

    def _float(self, operand: Operand) -> int:
        leaf = self._leaf(operand)
        return self._g.cast(leaf, GgmlType.F32) if operand.dtype is GgmlType.F16 else leaf

    def _leaf(self, operand: Operand, *, fill: bool = True) -> int:
        if operand.weight:
            return operand.weight
        tensor = self._g.tensor(operand.dtype, *operand.shape)
        self._place(tensor, operand, fill=fill)
        return tensor

    def _place(self, tensor: int, operand: Operand, *, fill: bool) -> None:
        if self._copies:
            self._copies.place(self._g, tensor, operand, fill=fill)
        else:
            self._binding.place(tensor, HostAddr(self._binding.memory.base + operand.ptr))

    def _indices(self, step: Step) -> int:
        """Row indices in memory that the guest cannot reach: kernels use them as addresses."""
        nbytes = len(step.indices)
        tensor = self._g.tensor(GgmlType.I32, nbytes // 4)
        buffer = self._stack.enter_context(self._device.allocate_inputs(nbytes))
        buffer.place(tensor, buffer.base)
        source = ctypes.create_string_buffer(step.indices, nbytes)
        self._g.library.ggml_backend_tensor_set(tensor, source, 0, nbytes)
        return tensor


def _four(shape: tuple[int, ...]) -> Shape:
    ne0, ne1, ne2, ne3 = (*shape, 1, 1, 1)[:4]
    return ne0, ne1, ne2, ne3


def _same(dst: Operand, src0: Operand, _src1: Operand | None) -> None:
    _require(dst.shape == src0.shape)


def _repeated(dst: Operand, src0: Operand, src1: Operand | None) -> None:
    assert src1 is not None
    _require(dst.shape == src0.shape)
    _require(all(a % b == 0 for a, b in zip(src0.shape, src1.shape, strict=True)))


def _product(dst: Operand, src0: Operand, src1: Operand | None) -> None:
    assert src1 is not None
    (k, n, *batch0), (k1, m, *batch1) = src0.shape, src1.shape
    _require(k == k1 and dst.shape == (n, m, *batch1))
    _require(all(b % a == 0 for a, b in zip(batch0, batch1, strict=True)))


def _rows(dst: Operand, src0: Operand, src1: Operand | None) -> None:
    assert src1 is not None
    n = src1.shape[0]
    _require(src0.shape[2:] == (1, 1) and src1.shape == (n, 1, 1, 1))
    _require(dst.shape == (src0.shape[0], n, 1, 1))


def _maxima(dst: Operand, src0: Operand, _src1: Operand | None) -> None:
    _require(src0.shape[2:] == (1, 1) and dst.shape == (src0.shape[1], 1, 1, 1))


_SHAPES: dict[Op, Callable[[Operand, Operand, Operand | None], None]] = {
    Op.MATMUL: _product,
    Op.ADD: _repeated,
    Op.MUL: _repeated,
    Op.SCALE: _same,
    Op.SILU: _same,
    Op.SOFTMAX: _same,
    Op.RMS_NORM: _same,
    Op.GET_ROWS: _rows,
    Op.ARGMAX: _maxima,
}
