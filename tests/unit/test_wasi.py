from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest
import wasmtime

from isthmus.abi import Errno
from isthmus.errors import GuestExited, GuestFault, LimitExceeded, SettingsError
from isthmus.wasm import Engine, Instance, Wasi
from isthmus.wasm.wasi import MAX_IOVECS, MAX_WRITE_NBYTES, wasi_errno, wasi_imports
from tests.unit.wasm_guest import StoppedClock, quiet_wasi, spawn, wasm

BADF, FAULT, INVAL, NOTSUP, SPIPE, NOTCAPABLE = 8, 21, 28, 58, 70, 76
IMPORTS = {imported.name: imported for imported in wasi_imports()}


def forwarding_guest() -> bytes:
    """Exports every WASI function under its own name; an i64 parameter is given as an i32."""
    parts = []
    for name, imported in IMPORTS.items():
        params = imported.signature.params
        result = "(result i32)" if imported.signature.result else ""
        parts.append(
            f'(import "wasi_snapshot_preview1" "{name}"'
            f" (func ${name} (param {' '.join(params)}) {result}))"
        )
        arguments = " ".join(
            f"(i64.extend_i32_s (local.get {i}))" if kind == "i64" else f"(local.get {i})"
            for i, kind in enumerate(params)
        )
        parts.append(
            f'(func (export "{name}") (param {"i32 " * len(params)}) {result}'
            f" (call ${name} {arguments}))"
        )
    return wasm(*parts)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine() as engine:
        yield engine


@pytest.fixture(scope="module")
def guest(engine: Engine) -> Any:
    return engine.compile(forwarding_guest(), "wasi")


@pytest.fixture
def instance(engine: Engine, guest: Any) -> Iterator[Instance]:
    with spawn(engine, guest) as instance:
        yield instance


def u32(instance: Instance, ptr: int) -> int:
    return int(instance.memory.unpack(struct.Struct("<I"), ptr)[0])


def u64(instance: Instance, ptr: int) -> int:
    return int(instance.memory.unpack(struct.Struct("<Q"), ptr)[0])


def test_the_46_functions_have_the_types_of_wasmtimes_own_wasi() -> None:
    engine = wasmtime.Engine()
    linker, store = wasmtime.Linker(engine), wasmtime.Store(engine)
    linker.define_wasi()
    store.set_wasi(wasmtime.WasiConfig())
    assert len(IMPORTS) == 46
    exports = linker.instantiate(store, wasmtime.Module(engine, forwarding_guest())).exports(store)
    assert IMPORTS.keys() <= set(exports)


def test_every_function_has_a_handler_of_its_arity() -> None:
    handlers = quiet_wasi().handlers()
    assert handlers.keys() == IMPORTS.keys()
    for name in ("path_open", "sock_accept", "fd_readdir"):
        assert handlers[name](*[9] * len(IMPORTS[name].signature.params)) == BADF


def test_nothing_crashes_on_hostile_arguments(instance: Instance) -> None:
    for name, imported in IMPORTS.items():
        for value in (0, 1, 2, 3, 65_535, 0x7FFFFFFF, -1):
            if name != "proc_exit":
                code = instance.call(name, *[value] * len(imported.signature.params))
                assert 0 <= code <= NOTCAPABLE


def test_arguments_and_environment(engine: Engine, guest: Any) -> None:
    wasi = quiet_wasi(args=["chat", "größe"], environ=["A=b"])
    with spawn(engine, guest, wasi=wasi) as instance:
        assert instance.call("args_sizes_get", 0, 4) == 0
        assert (u32(instance, 0), u32(instance, 4)) == (2, 13)
        assert instance.call("args_get", 16, 100) == 0
        assert (u32(instance, 16), u32(instance, 20)) == (100, 105)
        assert instance.memory.read(100, 13) == "chat\0größe\0".encode()
        assert instance.call("environ_sizes_get", 0, 4) == 0
        assert (u32(instance, 0), u32(instance, 4)) == (1, 4)
        assert instance.call("environ_get", 16, 100) == 0
        assert instance.memory.read(100, 4) == b"A=b\0"


def test_the_environment_is_empty_by_default(instance: Instance) -> None:
    instance.memory.write(0, b"\xff" * 8)
    assert instance.call("environ_sizes_get", 0, 4) == 0
    assert (u32(instance, 0), u32(instance, 4)) == (0, 0)


def test_a_zero_byte_in_an_argument_is_refused() -> None:
    with pytest.raises(SettingsError, match="zero byte"):
        quiet_wasi(args=["a\0b"])


def test_clocks_read_the_actors_clock(engine: Engine, guest: Any) -> None:
    clock = StoppedClock()
    clock.now_ns = 1 << 40
    with spawn(engine, guest, wasi=quiet_wasi(clock=clock)) as instance:
        assert instance.call("clock_time_get", 0, 0, 8) == 0
        assert u64(instance, 8) == 1 << 40
        assert instance.call("clock_time_get", 1, 0, 1 << 20) == FAULT
        clock.now_ns += 1000
        assert instance.call("clock_time_get", 1, 0, 8) == 0
        assert u64(instance, 8) == (1 << 40) + 1000
        assert instance.call("clock_res_get", 1, 8) == 0
        assert u64(instance, 8) == 1000
        assert instance.call("clock_time_get", 4, 0, 8) == INVAL
        assert instance.call("clock_res_get", 4, 8) == INVAL


def test_random_numbers_come_from_the_actor(engine: Engine, guest: Any) -> None:
    drawn: list[int] = []

    def random(nbytes: int) -> bytes:
        drawn.append(nbytes)
        return b"\xab" * nbytes

    with spawn(engine, guest, wasi=quiet_wasi(random=random)) as instance:
        assert instance.call("random_get", 8, 4) == 0
        assert instance.memory.read(7, 6) == b"\0\xab\xab\xab\xab\0"
        assert instance.call("random_get", 65_535, 2) == FAULT
        assert instance.call("random_get", 0, (1 << 20) + 1) == INVAL
    assert drawn == [4]


def iovecs(instance: Instance, ptr: int, *pieces: tuple[int, int]) -> None:
    instance.memory.write(ptr, b"".join(struct.pack("<II", *piece) for piece in pieces))


def test_writes_go_to_the_log(engine: Engine, guest: Any) -> None:
    logged: list[tuple[int, bytes]] = []
    wasi = quiet_wasi(write=lambda stream, data: logged.append((stream, data)))
    with spawn(engine, guest, wasi=wasi) as instance:
        instance.memory.write(100, b"hello world")
        iovecs(instance, 0, (100, 5), (0, 0), (105, 6))
        assert instance.call("fd_write", 1, 0, 3, 64) == 0
        assert u32(instance, 64) == 11
        assert instance.call("fd_pwrite", 2, 0, 1, 0, 64) == 0
        assert u32(instance, 64) == 5
        assert instance.call("fd_write", 1, 0, 0, 64) == 0
        assert u32(instance, 64) == 0
    assert logged == [(1, b"hello world"), (2, b"hello")]


def test_refused_writes_log_nothing(engine: Engine, guest: Any) -> None:
    logged: list[bytes] = []
    wasi = quiet_wasi(write=lambda stream, data: logged.append(data))
    with spawn(engine, guest, wasi=wasi) as instance:
        iovecs(instance, 0, (100, 5), (65_530, 7))
        assert instance.call("fd_write", 1, 0, 2, 64) == FAULT
        assert instance.call("fd_write", 1, 0, 1, 65_533) == FAULT
        assert instance.call("fd_write", 1, 65_532, 1, 64) == FAULT
        assert instance.call("fd_write", 1, 0, MAX_IOVECS + 1, 64) == INVAL
        assert instance.call("fd_write", 1, 0, -1, 64) == INVAL
        assert instance.call("fd_write", 0, 0, 1, 64) == BADF
        assert instance.call("fd_write", 3, 0, 1, 64) == BADF
    assert logged == []


def test_a_large_write_is_taken_in_part(engine: Engine, guest: Any) -> None:
    logged: list[int] = []
    wasi = quiet_wasi(write=lambda stream, data: logged.append(len(data)))
    with spawn(engine, guest, wasi=wasi) as instance:
        iovecs(instance, 0, *[(0, 65_536)] * 100)
        assert instance.call("fd_write", 1, 0, 100, 2048) == 0
        assert u32(instance, 2048) == MAX_WRITE_NBYTES
    assert logged == [MAX_WRITE_NBYTES]


def test_a_full_log_is_an_errno(engine: Engine, guest: Any) -> None:
    def full(stream: int, data: bytes) -> None:
        raise LimitExceeded("too much output")

    with spawn(engine, guest, wasi=quiet_wasi(write=full)) as instance:
        iovecs(instance, 0, (100, 5))
        assert instance.call("fd_write", 1, 0, 1, 64) == wasi_errno(Errno.ELIMIT) == 19


def test_standard_input_is_at_its_end(instance: Instance) -> None:
    instance.memory.write(64, b"\xff" * 4)
    assert instance.call("fd_read", 0, 0, 1, 64) == 0
    assert u32(instance, 64) == 0
    assert instance.call("fd_read", 1, 0, 1, 64) == BADF


def test_standard_input_is_read_into_all_parts(engine: Engine, guest: Any) -> None:
    asked: list[int] = []

    def read(nbytes: int) -> bytes:
        asked.append(nbytes)
        return b"hello"

    with spawn(engine, guest, wasi=quiet_wasi(read=read)) as instance:
        iovecs(instance, 0, (100, 3), (200, 0), (300, 9))
        assert instance.call("fd_read", 0, 0, 3, 64) == 0
        assert (u32(instance, 64), asked) == (5, [12])
        assert instance.memory.read(100, 4) == b"hel\0"
        assert instance.memory.read(300, 3) == b"lo\0"
        iovecs(instance, 0, (100, 0))
        assert instance.call("fd_read", 0, 0, 1, 64) == 0
        assert (u32(instance, 64), asked) == (0, [12])


def test_refused_reads_read_nothing(engine: Engine, guest: Any) -> None:
    def read(nbytes: int) -> bytes:
        raise AssertionError

    with spawn(engine, guest, wasi=quiet_wasi(read=read)) as instance:
        iovecs(instance, 0, (100, 5), (65_530, 7))
        assert instance.call("fd_read", 0, 0, 2, 64) == FAULT
        assert instance.call("fd_read", 0, 0, 1, 65_533) == FAULT
        assert instance.call("fd_read", 0, 65_532, 1, 64) == FAULT
        assert instance.call("fd_read", 0, 0, MAX_IOVECS + 1, 64) == INVAL


def subscribe(*wanted: tuple[int, int, int, int, int]) -> bytes:
    """(userdata, type, clock or descriptor, timeout, flags) of each, as poll_oneoff takes them."""
    packed = (struct.pack("<QB7xI4xQQH6x", *it[:4], 0, it[4]) for it in wanted)
    return b"".join(packed)


def poll(instance: Instance, *wanted: tuple[int, int, int, int, int]) -> list[tuple[int, int, int]]:
    """(userdata, errno, type) of each event."""
    instance.memory.write(4096, subscribe(*wanted))
    assert instance.call("poll_oneoff", 4096, 32_768, len(wanted), 64) == 0
    data = instance.memory.read(32_768, 32 * u32(instance, 64))
    return [it[:3] for it in struct.iter_unpack("<QHB5xQH6x", data)]


CLOCK, READ, WRITE, ABSOLUTE = 0, 1, 2, 1


def test_a_sleep_is_answered_at_once_and_moves_the_clock(engine: Engine, guest: Any) -> None:
    clock = StoppedClock()
    clock.now_ns = 1000
    with spawn(engine, guest, wasi=quiet_wasi(clock=clock)) as instance:
        assert poll(instance, (7, CLOCK, 1, 500, 0)) == [(7, 0, CLOCK)]
        assert clock.now_ns == 1500
        assert poll(instance, (7, CLOCK, 0, 1200, ABSOLUTE)) == [(7, 0, CLOCK)]
        assert clock.now_ns == 1500
        several = (1, CLOCK, 1, 900, 0), (2, CLOCK, 0, 1600, ABSOLUTE), (3, CLOCK, 1, 100, 0)
        assert poll(instance, *several) == [(2, 0, CLOCK), (3, 0, CLOCK)]
        assert clock.now_ns == 1600
        assert poll(instance, (9, CLOCK, 1, 2**64 - 1, 0)) == [(9, 0, CLOCK)]


def test_streams_are_ready_before_any_clock(engine: Engine, guest: Any) -> None:
    clock = StoppedClock()
    with spawn(engine, guest, wasi=quiet_wasi(clock=clock)) as instance:
        wanted = (1, CLOCK, 1, 500, 0), (2, READ, 0, 0, 0), (3, WRITE, 1, 0, 0)
        assert poll(instance, *wanted) == [(2, 0, READ), (3, 0, WRITE)]
        bad = (1, READ, 1, 0, 0), (2, WRITE, 0, 0, 0), (3, READ, 3, 0, 0), (4, CLOCK, 4, 0, 0)
        assert [it[1] for it in poll(instance, *bad)] == [BADF, BADF, BADF, INVAL]
        assert poll(instance, (5, 9, 0, 0, 0)) == [(5, INVAL, 9)]
    assert clock.now_ns == 0


def test_polls_are_refused_whole(instance: Instance) -> None:
    instance.memory.write(4096, subscribe((7, CLOCK, 1, 500, 0)))
    for arguments in (
        (4096, 32_768, 0, 64),
        (4096, 32_768, 1025, 64),
        (4096, 32_768, -1, 64),
    ):
        assert instance.call("poll_oneoff", *arguments) == INVAL
    for arguments in (
        (65_536 - 47, 32_768, 1, 64),
        (4096, 65_536 - 31, 1, 64),
        (4096, 32_768, 1, 65_533),
    ):
        assert instance.call("poll_oneoff", *arguments) == FAULT
    assert instance.memory.read(32_768, 64) == bytes(64)


def test_the_streams_are_character_devices_that_cannot_seek(instance: Instance) -> None:
    for fd, rights in [(0, 1 << 1), (1, 1 << 6), (2, 1 << 6)]:
        assert instance.call("fd_fdstat_get", fd, 0) == 0
        assert instance.memory.read(0, 2) == b"\x02\x00"
        assert (u64(instance, 8), u64(instance, 16)) == (rights, 0)
        assert instance.call("fd_seek", fd, 0, 0, 0) == SPIPE
        assert instance.call("fd_tell", fd, 0) == SPIPE
        assert instance.call("fd_close", fd) == 0
        assert instance.call("fd_fdstat_set_flags", fd, 4) == 0
        assert instance.call("fd_filestat_get", fd, 64) == 0
        assert instance.memory.read(64, 64) == bytes(16) + b"\2" + bytes(7) + b"\1" + bytes(39)
        assert instance.call("fd_fdstat_get", fd, 65_536 - 23) == FAULT
    for name in ("fd_fdstat_get", "fd_tell", "fd_fdstat_set_flags", "fd_filestat_get"):
        assert instance.call(name, 3, 0) == BADF
    assert instance.call("fd_close", 3) == BADF


def test_nothing_else_is_granted(instance: Instance) -> None:
    assert instance.call("fd_prestat_get", 3, 0) == BADF
    assert instance.call("path_open", 3, 0, 0, 1, 0, 0, 0, 0, 0) == BADF
    assert instance.call("fd_filestat_set_size", 1, 0) == NOTCAPABLE
    assert instance.call("fd_filestat_set_size", 3, 0) == BADF
    assert instance.call("sock_send", 3, 0, 0, 0, 0) == BADF
    assert instance.call("proc_raise", 6) == NOTSUP
    assert instance.call("sched_yield") == 0


def test_proc_exit_ends_the_call(instance: Instance) -> None:
    with pytest.raises(GuestExited, match="status 3") as caught:
        instance.call("proc_exit", 3)
    assert caught.value.status == 3
    assert instance.call("sched_yield") == 0


@pytest.mark.parametrize("code", list(Errno))
def test_every_errno_has_a_wasi_number(code: Errno) -> None:
    assert 0 < wasi_errno(code) <= NOTCAPABLE


def test_faults_are_positive_and_counted(instance: Instance) -> None:
    assert instance.call("random_get", -1, 1) == FAULT
    assert instance.counters.faults == 1


def test_a_wasi_belongs_to_one_instance(engine: Engine, guest: Any) -> None:
    wasi: Wasi = quiet_wasi()
    with spawn(engine, guest, wasi=wasi), pytest.raises(AssertionError, match="one instance"):
        spawn(engine, guest, wasi=wasi)
    assert engine.memory_creator.n_memories == 0


def test_a_missing_handler_faults_with_notsup() -> None:
    with pytest.raises(GuestFault) as caught:
        quiet_wasi().handlers()["proc_raise"](6)
    assert caught.value.code is Errno.ENOTSUP
