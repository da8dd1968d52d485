"""`compute` calls that are meant to take the device from everybody: by what they cost in truth."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import wasmtime

from isthmus import Actor, Limits, Model, Runtime
from isthmus.abi import OPERATION, TENSOR, Dtype, Errno, Op
from isthmus.actor import operation
from isthmus.actor.operation import MAX_WORK, MAX_WORK_ONCE, SLICE_WORK, Operand, Step, slices
from isthmus.errors import DeadlineExceeded
from isthmus.native._ggml import GgmlType
from isthmus.units import GuestPtr
from tests.attacks.proxy import call
from tests.tiny_gguf import TinyLlama

Shape = tuple[int, int, int, int]
ITEM_NBYTES = {Dtype.F32: 4, Dtype.F16: 2, Dtype.I32: 4}
STRUCTS = 4096
"""Where descriptors lie; tensors follow from `TENSORS` on."""
TENSORS = 1 << 16


def computing(pages: int = 4096) -> bytes:
    """A guest that hands `compute` the operations at STRUCTS; the first word says how many."""
    return bytes(
        wasmtime.wat2wasm(f"""(module
          (import "isthmus" "compute" (func $compute (param i32 i32) (result i32)))
          (memory (export "memory") {pages})
          (func (export "do") (result i32)
            (call $compute (i32.const {STRUCTS}) (i32.load (i32.const 0))))
          (func (export "on_message") (param i32) (result i32)
            (drop (call $compute (i32.const {STRUCTS}) (i32.load (i32.const 0))))
            (i32.const 0)))""")
    )


class Request:
    """Operations for an actor of `computing`, written into its memory."""

    def __init__(self, actor: Actor) -> None:
        self.actor = actor
        self.n = 0
        self._structs = STRUCTS + 256 * OPERATION.size
        self._top = TENSORS

    def tensor(self, dtype: Dtype, shape: Shape, seed: int | None = None) -> tuple[int, int]:
        """A new tensor: where its descriptor and its elements lie."""
        ptr, nbytes = self._top, ITEM_NBYTES[dtype] * int(np.prod(shape))
        self._top += -(-nbytes // 32) * 32
        at, self._structs = self._structs, self._structs + TENSOR.size
        self._write(at, TENSOR.pack(dtype, 0, ptr, 0, *shape))
        if seed is not None:
            kind = {Dtype.F32: np.float32, Dtype.F16: np.float16, Dtype.I32: np.int32}[dtype]
            numbers = np.random.default_rng(seed).standard_normal(int(np.prod(shape)))
            rows = np.random.default_rng(seed).integers(0, 3, int(np.prod(shape)))
            data = rows if dtype is Dtype.I32 else numbers
            self._write(ptr, data.astype(kind).tobytes())
        return at, ptr

    def add(self, op: Op, dst: int, src0: int, src1: int = 0, times: int = 1) -> None:
        for _ in range(times):
            at = STRUCTS + self.n * OPERATION.size
            param = {Op.SCALE: 2.5, Op.RMS_NORM: 1e-5}.get(op, 0.0)
            self._write(at, OPERATION.pack(op, dst, src0, src1, param, 0, 0, 0))
            self.n += 1
        self._write(0, self.n.to_bytes(4, "little"))

    def run(self) -> int:
        return call(self.actor, "do")

    def read(self, ptr: int, nbytes: int) -> bytes:
        with self.actor.region.view(ptr, nbytes) as view:
            return bytes(view.memory)

    def _write(self, ptr: int, data: bytes) -> None:
        with self.actor.region.view(ptr, len(data)) as view:
            view.memory[:] = data


@pytest.fixture(scope="module")
def single() -> Iterator[Runtime]:
    """One thread, so that processor time is the device's."""
    with Runtime(device="cpu", threads=1) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def tiny_model(single: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Model:
    path: Path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    return single.load_model(TinyLlama(with_tokenizer=True).write(path))


def one(op: Op, dtype: Dtype, src0: Shape, src1: Shape | None) -> tuple[Shape, Dtype]:
    """The shape and type of an operation's result."""
    if op is Op.MATMUL:
        assert src1 is not None
        return (src0[1], src1[1], src1[2], src1[3]), Dtype.F32
    if op is Op.GET_ROWS:
        assert src1 is not None
        return (src0[0], src1[0], 1, 1), Dtype.F32
    if op is Op.ARGMAX:
        return (src0[1], 1, 1, 1), Dtype.I32
    return src0, dtype


def request_of(
    actor: Actor, op: Op, dtype: Dtype, src0: Shape, src1: Shape | None, *, seed: int | None = 1
) -> tuple[Request, int, int]:
    """One operation, and where its result lies: (request, ptr, nbytes)."""
    request = Request(actor)
    a, _ = request.tensor(dtype, src0, seed)
    kind = Dtype.I32 if op is Op.GET_ROWS else dtype
    b = request.tensor(kind, src1, seed)[0] if src1 else 0
    shape, result = one(op, dtype, src0, src1)
    dst, ptr = request.tensor(result, shape)
    request.add(op, dst, a, b)
    return request, ptr, ITEM_NBYTES[result] * int(np.prod(shape))


CUT = [
    *((op, (7, 41, 3, 5), None) for op in (Op.SCALE, Op.SILU, Op.SOFTMAX, Op.RMS_NORM)),
    *((op, (1, 5000, 1, 1), None) for op in (Op.SCALE, Op.SILU, Op.SOFTMAX, Op.RMS_NORM)),
    *((op, (129, 67, 2, 2), (129, 67, 2, 2)) for op in (Op.ADD, Op.MUL)),
    *((op, (130, 67, 2, 2), (65, 67, 2, 2)) for op in (Op.ADD, Op.MUL)),
    *((op, (9, 300, 2, 1), (9, 1, 1, 1)) for op in (Op.ADD, Op.MUL)),
    *((op, (9, 300, 2, 1), (1, 1, 1, 1)) for op in (Op.ADD, Op.MUL)),
    *((op, (9, 300, 2, 1), (9, 100, 1, 1)) for op in (Op.ADD, Op.MUL)),
    (Op.ARGMAX, (33, 500, 1, 1), None),
    (Op.GET_ROWS, (33, 3, 1, 1), (999, 1, 1, 1)),
    (Op.MATMUL, (64, 40, 2, 1), (64, 50, 4, 1)),
]


@pytest.mark.parametrize(("op", "src0", "src1"), CUT, ids=lambda it: str(getattr(it, "name", it)))
@pytest.mark.parametrize("dtype", [Dtype.F32, Dtype.F16], ids=lambda it: it.name)
def test_slices_change_no_bit(
    single: Runtime,
    monkeypatch: pytest.MonkeyPatch,
    op: Op,
    dtype: Dtype,
    src0: Shape,
    src1: Shape | None,
) -> None:
    results, submissions = [], []
    for work in (SLICE_WORK, 300_000):
        monkeypatch.setattr(operation, "SLICE_WORK", work)
        with single.spawn(computing(64)) as actor:
            request, ptr, nbytes = request_of(actor, op, dtype, src0, src1)
            before = single.device.counters.submissions
            assert request.run() == 0
            submissions.append(single.device.counters.submissions - before)
            results.append(request.read(ptr, nbytes))
    assert results[0] == results[1]
    assert any(results[0])
    assert submissions[0] == 1
    alike = op is Op.MATMUL or src1 == (9, 100, 1, 1)
    assert submissions[1] == 1 if alike else submissions[1] > 1


COSTLY = [
    *((op, (1, 1 << 18, 1, 1), None) for op in (Op.SCALE, Op.SILU, Op.SOFTMAX, Op.RMS_NORM)),
    *((op, (1, 1, 1 << 18, 1), None) for op in (Op.SILU, Op.SOFTMAX)),
    *((op, (3, 1 << 17, 1, 1), None) for op in (Op.SCALE, Op.SILU, Op.SOFTMAX, Op.RMS_NORM)),
    *((op, (1 << 20, 1, 1, 1), None) for op in (Op.SILU, Op.SOFTMAX, Op.RMS_NORM)),
    (Op.ARGMAX, (1, 1 << 18, 1, 1), None),
    (Op.ARGMAX, (1 << 18, 2, 1, 1), None),
    *((op, (1, 1 << 18, 1, 1), (1, 1 << 18, 1, 1)) for op in (Op.ADD, Op.MUL)),
    *((op, (1 << 20, 1, 1, 1), (1, 1, 1, 1)) for op in (Op.ADD, Op.MUL)),
    *((op, (2, 1, 1, 1 << 17), (1, 1, 1, 1 << 16)) for op in (Op.ADD, Op.MUL)),
    (Op.GET_ROWS, (1, 3, 1, 1), (1 << 18, 1, 1, 1)),
    (Op.MATMUL, (1, 512, 1, 1), (1, 512, 1, 1)),
    (Op.MATMUL, (1, 1 << 18, 1, 1), (1, 1, 1, 1)),
    (Op.MATMUL, (1, 1, 1, 1), (1, 1 << 18, 1, 1)),
    (Op.MATMUL, (1, 1, 1, 1), (1, 1, 1, 1 << 18)),
    (Op.MATMUL, (1 << 20, 1, 1, 1), (1 << 20, 2, 1, 1)),
    (Op.MATMUL, (1023, 509, 1, 1), (1023, 13, 1, 1)),
]
FACTOR = 4
"""How much longer a unit of work may take in the worst operation than in a large product."""


def step_of(op: Op, dtype: Dtype, src0: Shape, src1: Shape | None) -> Step:
    def operand(kind: Dtype, shape: Shape) -> Operand:
        nbytes = ITEM_NBYTES[kind] * int(np.prod(shape))
        return Operand(GgmlType(kind), shape, GuestPtr(0), nbytes)

    shape, result = one(op, dtype, src0, src1)
    second = operand(Dtype.I32 if op is Op.GET_ROWS else dtype, src1) if src1 else None
    indices = bytes(4 * src1[0]) if op is Op.GET_ROWS and src1 else b""
    return Step(op, operand(result, shape), operand(dtype, src0), second, 0.0, indices)


def seconds(request: Request) -> float:
    """Processor time of a call, at its best of five."""
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        assert request.run() == 0
        best = min(best, time.process_time() - start)
    return best


@pytest.fixture(scope="module")
def unit_s(single: Runtime) -> float:
    """Seconds that a multiplication of a large product takes."""
    with single.spawn(computing()) as actor:
        src0, src1 = (1024, 1024, 1, 1), (1024, 128, 1, 1)
        request, _, _ = request_of(actor, Op.MATMUL, Dtype.F32, src0, src1)
        return seconds(request) / step_of(Op.MATMUL, Dtype.F32, src0, src1).work


@pytest.mark.parametrize(
    ("op", "src0", "src1"), COSTLY, ids=lambda it: str(getattr(it, "name", it))
)
@pytest.mark.parametrize("dtype", [Dtype.F32, Dtype.F16], ids=lambda it: it.name)
def test_work_is_time(
    single: Runtime, unit_s: float, op: Op, dtype: Dtype, src0: Shape, src1: Shape | None
) -> None:
    with single.spawn(computing()) as actor:
        request, _, _ = request_of(actor, op, dtype, src0, src1)
        assert seconds(request) < FACTOR * unit_s * step_of(op, dtype, src0, src1).work


def test_no_slice_is_larger_than_what_may_run_once() -> None:
    """Whatever the shapes, unless it is refused."""
    rng, n_kept = np.random.default_rng(3), 0
    for _ in range(2000):
        op = Op(int(rng.integers(1, 10)))
        exponents = rng.integers(0, 26, 4) * rng.integers(0, 2, 4)
        src0: Shape = tuple(int(1 << n) for n in exponents)  # type: ignore[assignment]
        src1: Shape | None = None
        if op in (Op.ADD, Op.MUL):
            src1 = tuple(int(1 << rng.integers(0, n + 1)) for n in exponents)  # type: ignore[assignment]
        elif op is Op.MATMUL:
            src1 = (src0[0], int(1 << rng.integers(0, 20)), src0[2], src0[3])
        elif op in (Op.GET_ROWS, Op.ARGMAX):
            src0 = (src0[0], src0[1], 1, 1)
            src1 = (int(1 << rng.integers(0, 20)), 1, 1, 1) if op is Op.GET_ROWS else None
        step = step_of(op, Dtype.F32, src0, src1)
        if operation.is_too_large([step]):
            continue
        n_kept += 1
        groups = slices([step, step])
        for group in groups:
            whole = sum(part.work for part in group)
            assert whole <= max(2 * SLICE_WORK, MAX_WORK_ONCE if len(group) == 1 else 0)
        rows = sum(part.n_rows for group in groups for part in group)
        assert rows == 2 * step.n_rows
    assert n_kept > 500


def test_what_nobody_can_wait_for_is_refused(single: Runtime) -> None:
    with single.spawn(computing()) as actor:
        request = Request(actor)
        a, _ = request.tensor(Dtype.F32, (1, 1 << 22, 1, 1))
        dst, _ = request.tensor(Dtype.F32, (1, 1 << 22, 1, 1))
        request.add(Op.SOFTMAX, dst, a, times=256)
        before = single.device.counters.submissions
        assert request.run() == -Errno.ELIMIT
        assert single.device.counters.submissions == before
    with single.spawn(computing()) as actor:
        request = Request(actor)
        a, _ = request.tensor(Dtype.F32, (2048, 1024, 1, 1))
        b, _ = request.tensor(Dtype.F32, (2048, 1024, 1, 1))
        dst, _ = request.tensor(Dtype.F32, (1024, 1024, 1, 1))
        request.add(Op.MATMUL, dst, a, b)
        assert request.run() == -Errno.ELIMIT


def long_call(actor: Actor) -> int:
    """Has its next message compute as much as one call may; in how many slices."""
    request = Request(actor)
    shape = (1, 1 << 20, 1, 1)
    step = step_of(Op.SOFTMAX, Dtype.F32, shape, None)
    a, _ = request.tensor(Dtype.F32, shape)
    dst, _ = request.tensor(Dtype.F32, shape)
    request.add(Op.SOFTMAX, dst, a, times=MAX_WORK // step.work)
    return len(slices([step] * request.n))


def test_a_deadline_counts_between_slices(single: Runtime) -> None:
    with single.spawn(computing(), limits=Limits(on_failure="undo")) as actor:
        n_slices = long_call(actor)
        before = single.device.counters.submissions
        with pytest.raises(DeadlineExceeded):
            actor.send("x", deadline_s=0.05)
        assert single.device.counters.submissions - before < n_slices


def test_others_compute_between_slices(single: Runtime, tiny_model: Model) -> None:
    """Another agent's step is done long before the call is."""
    with (
        single.spawn(computing()) as greedy,
        single.spawn("bench", models={"default": tiny_model}, args={"n_ctx": 256}) as other,
    ):
        n_slices = long_call(greedy)
        other.send("prefill 10")
        before = single.device.counters.submissions
        stream = greedy.stream("x")
        while single.device.counters.submissions == before:
            time.sleep(0.001)
        other.send("sequence 1")
        assert single.device.counters.submissions - before < n_slices
        assert not stream.ended
        list(stream)


def test_memory_for_results_between_is_given_back(single: Runtime) -> None:
    """F16 sources are converted; what that took is not kept by every actor that ever computed."""
    with single.spawn(computing()) as actor:
        request, _, _ = request_of(actor, Op.SCALE, Dtype.F16, (1024, 4096, 1, 1), None)
        assert request.run() == 0
        assert actor.body._api._tensor.unit._memory.nbytes <= 4 << 20
