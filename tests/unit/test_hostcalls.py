from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.abi import Errno
from isthmus.counters import Counters
from isthmus.errors import GuestFault
from isthmus.memory import Region
from isthmus.units import GIB, WASM_PAGE
from isthmus.wasm import Engine, GuestMemory
from tests.unit.wasm_guest import spawn, wasm

NBYTES = 3 * WASM_PAGE
U32 = st.integers(0, (1 << 32) - 1)
EDGES = st.sampled_from([0, 1, NBYTES - 1, NBYTES, NBYTES + 1, 1 << 31, (1 << 32) - 1])
NUMBERS = st.one_of(U32, EDGES, st.integers(0, NBYTES + 16))


@pytest.fixture(scope="module")
def region() -> Iterator[Region]:
    region = Region.reserve(1 << 20, nbytes=NBYTES)
    yield region
    region.close()


def code_of(error: pytest.ExceptionInfo[GuestFault]) -> Errno:
    return error.value.code


@given(ptr=NUMBERS, nbytes=NUMBERS)
def test_check_agrees_with_arithmetic_without_wrap_around(
    region: Region, ptr: int, nbytes: int
) -> None:
    memory = GuestMemory(region, Counters())
    if ptr + nbytes <= NBYTES:
        assert memory.check(ptr, nbytes) == region.base + ptr
    else:
        with pytest.raises(GuestFault) as caught:
            memory.check(ptr, nbytes)
        assert code_of(caught) is Errno.EFAULT


@given(ptr=st.integers(-(1 << 40), 1 << 70), nbytes=st.integers(-(1 << 40), 1 << 70))
def test_check_takes_any_integer(region: Region, ptr: int, nbytes: int) -> None:
    memory = GuestMemory(region, Counters())
    inside = 0 <= ptr <= ptr + nbytes <= NBYTES
    try:
        assert memory.check(ptr, nbytes) == region.base + ptr
    except GuestFault:
        assert not inside
    else:
        assert inside


@given(ptr=NUMBERS, shift=st.integers(0, 12))
def test_alignment(region: Region, ptr: int, shift: int) -> None:
    memory = GuestMemory(region, Counters())
    alignment = 1 << shift
    if ptr % alignment:
        with pytest.raises(GuestFault) as caught:
            memory.check_aligned(ptr, 0, alignment)
        assert code_of(caught) is Errno.EALIGN
    elif ptr <= NBYTES:
        assert memory.check_aligned(ptr, 0, alignment) == region.base + ptr


@given(ptr=st.integers(0, NBYTES - 64), data=st.binary(max_size=64))
def test_what_is_written_is_read_and_counted(region: Region, ptr: int, data: bytes) -> None:
    counters = Counters()
    memory = GuestMemory(region, counters)
    memory.write(ptr, data)
    assert memory.read(ptr, len(data)) == data
    assert ctypes.string_at(region.base + ptr, len(data)) == data
    assert (counters.bytes_control, counters.bytes_copied) == (len(data), 0)


@given(values=st.lists(st.integers(-(1 << 31), (1 << 31) - 1), max_size=20))
def test_i32_arrays(region: Region, values: list[int]) -> None:
    memory = GuestMemory(region, Counters())
    memory.write(16, struct.pack(f"<{len(values)}i", *values))
    assert memory.read_i32_array(16, len(values)).tolist() == values


@given(ptr=NUMBERS, n=NUMBERS)
def test_i32_arrays_that_do_not_fit(region: Region, ptr: int, n: int) -> None:
    memory = GuestMemory(region, Counters())
    if ptr % 4 or ptr + 4 * n > NBYTES:
        with pytest.raises(GuestFault) as caught:
            memory.read_i32_array(ptr, n)
        assert code_of(caught) is (Errno.EALIGN if ptr % 4 else Errno.EFAULT)


def test_text(region: Region) -> None:
    memory = GuestMemory(region, Counters())
    memory.write(0, "Zürich".encode() + b"\xff")
    assert memory.read_text(0, 7, 7) == "Zürich"
    for nbytes, limit, code in [(7, 6, Errno.EINVAL), (8, 8, Errno.EINVAL), (2, 8, Errno.EINVAL)]:
        with pytest.raises(GuestFault) as caught:
            memory.read_text(0, nbytes, limit)
        assert code_of(caught) is code
    with pytest.raises(GuestFault) as caught:
        memory.read_text(NBYTES, 1, 8)
    assert code_of(caught) is Errno.EFAULT


@pytest.mark.parametrize("nbytes", [0, 1, 4096, 4097, 9000])
def test_fill_writes_what_fits_and_nothing_else(region: Region, nbytes: int) -> None:
    memory, data = GuestMemory(region, Counters()), b"x" * nbytes
    memory.write(0, bytes(NBYTES))
    assert memory.fill(8, nbytes, data) == nbytes
    assert memory.read(0, nbytes + 16) == bytes(8) + data + bytes(8)
    if nbytes:
        assert memory.fill(8, nbytes - 1, b"y" * nbytes) == nbytes
    assert memory.read(8, nbytes) == data
    for ptr, cap in ((NBYTES, 1), (NBYTES - nbytes + 1, nbytes), (0, NBYTES + 1), (-1, 1)):
        with pytest.raises(GuestFault) as caught:
            memory.fill(ptr, cap, data[:cap])
        assert code_of(caught) is Errno.EFAULT


def test_structs(region: Region) -> None:
    memory = GuestMemory(region, Counters())
    layout = struct.Struct("<IfQ")
    memory.write(NBYTES - layout.size, layout.pack(1, 0.5, 1 << 63))
    assert memory.unpack(layout, NBYTES - layout.size) == (1, 0.5, 1 << 63)
    with pytest.raises(GuestFault):
        memory.unpack(layout, NBYTES - layout.size + 1)


def test_nothing_lies_in_a_detached_memory() -> None:
    region = Region.reserve(1 << 20, nbytes=WASM_PAGE)
    memory = GuestMemory(region, Counters())
    assert memory.nbytes == WASM_PAGE
    memory.detach()
    region.close()
    assert memory.nbytes == 0
    for use in (
        lambda: memory.check(0, 0),
        lambda: memory.read(0, 1),
        lambda: memory.write(0, b"x"),
        lambda: memory.fill(0, 0, b""),
    ):
        with pytest.raises(GuestFault):
            use()


def test_bounds_follow_growth() -> None:
    region = Region.reserve(1 << 20, nbytes=WASM_PAGE)
    memory = GuestMemory(region, Counters())
    with pytest.raises(GuestFault):
        memory.check(WASM_PAGE, 1)
    region.grow(2 * WASM_PAGE)
    assert memory.check(WASM_PAGE, 1) == region.base + WASM_PAGE
    region.close()


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine() as engine:
        yield engine


def test_arguments_arrive_unsigned_and_in_order(engine: Engine) -> None:
    got: list[tuple[int, ...]] = []

    def tokenize(*arguments: int) -> int:
        got.append(arguments)
        return len(arguments)

    guest = wasm(
        '(import "isthmus" "tokenize" (func $t (param i32 i32 i32 i32 i32 i32) (result i32)))',
        '(func (export "go") (result i32) (call $t (i32.const 0) (i32.const -1)'
        " (i32.const 2) (i32.const 0x80000000) (i32.const 4) (i32.const 5)))",
    )
    with spawn(engine, guest, {"tokenize": tokenize}) as instance:
        assert instance.call("go") == 6
    assert got == [(0, 0xFFFFFFFF, 2, 0x80000000, 4, 5)]


@pytest.mark.parametrize("value", [0, -1, 1 << 31, (1 << 63) - 1, -(1 << 63), -(1 << 32)])
def test_i64_results_arrive_whole(engine: Engine, value: int) -> None:
    guest = wasm(
        '(import "isthmus" "clock_ns" (func $now (result i64)))',
        '(func (export "go") (i64.store (i32.const 0) (call $now)))',
    )
    with spawn(engine, guest, {"clock_ns": lambda: value}) as instance:
        instance.call("go")
        assert instance.memory.unpack(struct.Struct("<q"), 0) == (value,)


def test_an_i64_error_is_negative(engine: Engine) -> None:
    def fault(model: int, n_ctx: int) -> int:
        raise GuestFault(Errno.EBADF)

    guest = wasm(
        '(import "isthmus" "session_nbytes" (func $f (param i32 i32) (result i64)))',
        '(func (export "go") (i64.store (i32.const 0) (call $f (i32.const 1) (i32.const 2))))',
    )
    with spawn(engine, guest, {"session_nbytes": fault}) as instance:
        instance.call("go")
        assert instance.memory.unpack(struct.Struct("<q"), 0) == (-Errno.EBADF,)
        assert instance.counters.faults == 1


@given(value=st.integers(-(1 << 31), (1 << 32) - 1))
def test_i32_results_wrap_to_signed(engine: Engine, value: int) -> None:
    guest = wasm(
        '(import "isthmus" "session_close" (func $f (param i32) (result i32)))',
        '(func (export "go") (result i32) (call $f (i32.const 1)))',
    )
    with spawn(engine, guest, {"session_close": lambda n: value}) as instance:
        assert instance.call("go") == (value + (1 << 31)) % (1 << 32) - (1 << 31)


def test_every_call_is_counted(engine: Engine) -> None:
    guest = wasm(
        '(import "isthmus" "session_close" (func $f (param i32) (result i32)))',
        '(import "wasi_snapshot_preview1" "sched_yield" (func $y (result i32)))',
        '(func (export "go") (result i32) (drop (call $f (i32.const 1))) (call $y))',
    )
    with spawn(engine, guest, {"session_close": lambda n: 0}) as instance:
        for _ in range(3):
            instance.call("go")
        assert (instance.counters.host_calls, instance.counters.faults) == (6, 0)


def test_what_nobody_copies_is_refused() -> None:
    """A size beyond 32 bits would be cut on its way into C."""
    with Region.reserve(8 * GIB, nbytes=6 * GIB) as region:
        memory = GuestMemory(region, Counters(), is_64=True)
        for nbytes in (GIB + 1, 2**31, 2**32 - 1, 2**32 + 3):
            with pytest.raises(GuestFault) as caught:
                memory.read(0, nbytes)
            assert code_of(caught) is Errno.EINVAL
