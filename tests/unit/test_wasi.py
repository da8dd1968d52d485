from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest
import wasmtime

from isthmus.abi import Errno
from isthmus.errors import GuestExited, GuestFault, LimitExceeded, SettingsError
from isthmus.wasm import Engine, Instance, Wasi
from isthmus.wasm.wasi import MOST_IOVECS, MOST_WRITE_NBYTES, wasi_errno, wasi_imports
from tests.unit.wasm_guest import quiet_wasi, spawn, wasm

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
    times = iter([1 << 40, (1 << 40) + 1000])
    with spawn(engine, guest, wasi=quiet_wasi(clock_ns=lambda: next(times))) as instance:
        assert instance.call("clock_time_get", 0, 0, 8) == 0
        assert u64(instance, 8) == 1 << 40
        assert instance.call("clock_time_get", 1, 0, 1 << 20) == FAULT
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
    wasi = quiet_wasi(log=lambda stream, data: logged.append((stream, data)))
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
    wasi = quiet_wasi(log=lambda stream, data: logged.append(data))
    with spawn(engine, guest, wasi=wasi) as instance:
        iovecs(instance, 0, (100, 5), (65_530, 7))
        assert instance.call("fd_write", 1, 0, 2, 64) == FAULT
        assert instance.call("fd_write", 1, 0, 1, 65_533) == FAULT
        assert instance.call("fd_write", 1, 65_532, 1, 64) == FAULT
        assert instance.call("fd_write", 1, 0, MOST_IOVECS + 1, 64) == INVAL
        assert instance.call("fd_write", 1, 0, -1, 64) == INVAL
        assert instance.call("fd_write", 0, 0, 1, 64) == BADF
        assert instance.call("fd_write", 3, 0, 1, 64) == BADF
    assert logged == []


def test_a_large_write_is_taken_in_part(engine: Engine, guest: Any) -> None:
    logged: list[int] = []
    wasi = quiet_wasi(log=lambda stream, data: logged.append(len(data)))
    with spawn(engine, guest, wasi=wasi) as instance:
        iovecs(instance, 0, *[(0, 65_536)] * 100)
        assert instance.call("fd_write", 1, 0, 100, 2048) == 0
        assert u32(instance, 2048) == MOST_WRITE_NBYTES
    assert logged == [MOST_WRITE_NBYTES]


def test_a_full_log_is_an_errno(engine: Engine, guest: Any) -> None:
    def full(stream: int, data: bytes) -> None:
        raise LimitExceeded("too much output")

    with spawn(engine, guest, wasi=quiet_wasi(log=full)) as instance:
        iovecs(instance, 0, (100, 5))
        assert instance.call("fd_write", 1, 0, 1, 64) == wasi_errno(Errno.ELIMIT) == 19


def test_standard_input_is_at_its_end(instance: Instance) -> None:
    instance.memory.write(64, b"\xff" * 4)
    assert instance.call("fd_read", 0, 0, 1, 64) == 0
    assert u32(instance, 64) == 0
    assert instance.call("fd_read", 1, 0, 1, 64) == BADF


def test_the_streams_are_character_devices_that_cannot_seek(instance: Instance) -> None:
    for fd, rights in [(0, 1 << 1), (1, 1 << 6), (2, 1 << 6)]:
        assert instance.call("fd_fdstat_get", fd, 0) == 0
        assert instance.memory.read(0, 2) == b"\x02\x00"
        assert (u64(instance, 8), u64(instance, 16)) == (rights, 0)
        assert instance.call("fd_seek", fd, 0, 0, 0) == SPIPE
        assert instance.call("fd_tell", fd, 0) == SPIPE
        assert instance.call("fd_close", fd) == 0
        assert instance.call("fd_fdstat_get", fd, 65_536 - 23) == FAULT
    for name in ("fd_fdstat_get", "fd_tell"):
        assert instance.call(name, 3, 0) == BADF
    assert instance.call("fd_close", 3) == BADF


def test_nothing_else_is_granted(instance: Instance) -> None:
    assert instance.call("fd_prestat_get", 3, 0) == BADF
    assert instance.call("path_open", 3, 0, 0, 1, 0, 0, 0, 0, 0) == BADF
    assert instance.call("fd_filestat_set_size", 1, 0) == NOTCAPABLE
    assert instance.call("fd_filestat_set_size", 3, 0) == BADF
    assert instance.call("sock_send", 3, 0, 0, 0, 0) == BADF
    assert instance.call("poll_oneoff", 0, 0, 1, 0) == NOTSUP
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
