from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import wasmtime

from isthmus.abi import HOST_FUNCTIONS
from isthmus.errors import (
    ActorClosed,
    DeadlineExceeded,
    GuestInvalid,
    LibraryUnsupported,
)
from isthmus.native import wasmtime_capi as capi
from isthmus.wasm import Engine
from isthmus.wasm.bounds import Bound
from tests.patience import PATIENCE_S
from tests.unit.wasm_guest import spawn, until, wasm

SPIN = '(func (export "spin") (loop $l (br $l)))'


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine() as engine:
        yield engine


def eventually(true: Callable[[], bool]) -> bool:
    """Whether `true` becomes so; patience is long because machines are shared."""
    end = time.monotonic() + PATIENCE_S
    while not true() and time.monotonic() < end:
        time.sleep(0.005)
    return true()


def watchdogs() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "isthmus-watchdog"]


def test_every_host_function_can_be_imported_with_its_type(engine: Engine) -> None:
    imports = [
        f'(import "isthmus" "{function.name}" (func (param {" ".join(function.wasm_params)})'
        f" (result {function.wasm_result})))"
        for function in HOST_FUNCTIONS
    ]
    with spawn(engine, wasm(*imports)) as instance:
        assert instance.call("on_message", 3) == 3


def test_another_version_of_wasmtime_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "49.0.0")
    with pytest.raises(LibraryUnsupported, match=r"49\.0\.0.*50\.0\.1.*pip install"):
        Engine()


def test_other_layouts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(capi._SIZES, "wasmtime_func", 24)
    with pytest.raises(LibraryUnsupported, match="wasmtime_func"):
        capi.check_version()


def test_the_python_that_cannot_run_on_fibers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.version_info", (3, 14, 0, "final", 0))
    with pytest.raises(LibraryUnsupported, match=r"3\.14\.0 mistakes.*3\.14\.1"):
        Engine()
    monkeypatch.setattr("sys.version_info", (3, 14, 1, "final", 0))
    Engine().close()


@pytest.mark.parametrize(
    "text",
    [
        '(memory (export "memory") 1 2 shared)',
        '(memory (export "memory") 1) (memory 1)',
    ],
)
def test_memories_of_other_kinds_are_off(engine: Engine, text: str) -> None:
    with pytest.raises(GuestInvalid, match="not valid WebAssembly"):
        engine.compile(wasm(memory=text), "guest")


def test_an_engine_is_for_one_kind_of_memory(engine: Engine) -> None:
    wide = wasm(memory='(memory (export "memory") i64 1)')
    with pytest.raises(GuestInvalid, match="64-bit memory: this engine is for 32-bit ones"):
        engine.compile(wide, "guest")
    with Engine(is_64=True) as other:
        assert other.compile(wide, "guest").is_64
        with pytest.raises(GuestInvalid, match="32-bit memory: this engine is for 64-bit ones"):
            other.compile(wasm(), "guest")


@pytest.mark.parametrize(
    "part",
    [
        "(type (struct (field i32)))",
        "(tag (param i32))",
        "(func (param i32 i32) (drop (i64.mul_wide_u (i64.const 1) (i64.const 2))) (drop))",
        "(table 1 externref)",
    ],
)
def test_proposals_that_bring_hidden_state_or_a_heap_are_off(engine: Engine, part: str) -> None:
    with pytest.raises(GuestInvalid, match="not valid WebAssembly"):
        engine.compile(wasm(part), "guest")


def test_what_plain_toolchains_emit_is_on(engine: Engine) -> None:
    guest = wasm(
        '(table (export "table") 2 funcref) (elem declare func $f) (func $f)',
        '(func (export "simd") (result i32) (i32x4.extract_lane 0 (v128.const i32x4 7 0 0 0)))',
        '(func (export "copy") (memory.copy (i32.const 0) (i32.const 1) (i32.const 2)))',
        '(func (export "sign") (result i32) (i32.extend8_s (i32.const 255)))',
        '(func (export "sat") (result i32) (i32.trunc_sat_f32_s (f32.const nan)))',
        "(func (result i32 i32) (i32.const 1) (i32.const 2))",
    )
    with spawn(engine, guest) as instance:
        assert instance.call("simd") == 7
        assert instance.call("sign") == -1
        assert instance.call("sat") == 0
        assert instance.call("copy") == 0


def test_tables_are_limited(engine: Engine) -> None:
    most, most_tables = Bound.TABLE_ELEMENTS.most, Bound.TABLES.most
    half = f"(table {most // 2} funcref)"
    spawn(engine, wasm(half * 2)).close()
    for tables in (f"(table {most + 1} funcref)", half * 2 + "(table 1 funcref)"):
        with pytest.raises(GuestInvalid, match=f"{most + 1:,} elements in its tables"):
            spawn(engine, wasm(tables))
    with pytest.raises(GuestInvalid, match=f"{most_tables + 1} tables, and {most_tables} are"):
        spawn(engine, wasm("(table 1 funcref)" * (most_tables + 1)))
    assert engine.memory_creator.n_memories == 0


def test_nan_has_one_bit_pattern(engine: Engine) -> None:
    nan = wasm(
        '(func (export "nan") (param i32) (result i32)'
        " (i32.reinterpret_f32 (f32.add (f32.const 1) (f32.reinterpret_i32 (local.get 0)))))"
    )
    with spawn(engine, nan) as instance:
        assert instance.call("nan", 0xFFC12345) == 0x7FC00000
        assert instance.call("nan", 0x7FC54321) == 0x7FC00000


def test_no_thread_runs_before_the_first_call(engine: Engine) -> None:
    before = len(watchdogs())
    with spawn(engine, wasm()) as instance:
        assert len(watchdogs()) == before
        instance.call("on_message", 0)
        assert len(watchdogs()) == before + 1


def test_an_idle_engine_sleeps_and_wakes_for_the_next_call(engine: Engine) -> None:
    with spawn(engine, wasm(SPIN)) as instance:
        for _ in range(2):
            instance.call("on_message", 0)
            assert not engine.watchdog.asleep
            assert eventually(lambda: engine.watchdog.asleep)
        with pytest.raises(DeadlineExceeded):
            instance.call("spin", check=until(time.monotonic() + 0.02))


def test_the_epoch_stands_still_while_no_call_is_open() -> None:
    n_ticks = 0

    def tick() -> None:
        nonlocal n_ticks
        n_ticks += 1

    from isthmus.wasm.watchdog import Watchdog

    watchdog, call = Watchdog(tick), object()
    watchdog.calls.add(call)
    watchdog.wake()
    assert eventually(lambda: n_ticks >= 3)
    watchdog.calls.discard(call)
    assert eventually(lambda: watchdog.asleep)
    stood = n_ticks
    assert not eventually_within(lambda: n_ticks > stood, 0.1)
    watchdog.close()


def eventually_within(true: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.005)
    return true()


def test_close_ends_the_thread_and_refuses_calls() -> None:
    engine = Engine()
    before = len(watchdogs())
    instance = spawn(engine, wasm())
    instance.call("on_message", 0)
    engine.close()
    engine.close()
    assert len(watchdogs()) == before
    with pytest.raises(ActorClosed, match="engine"):
        instance.call("on_message", 0)
    instance.close()


def test_a_dropped_engine_ends_its_thread() -> None:
    before = len(watchdogs())
    engine = Engine()
    spawn(engine, wasm()).call("on_message", 0)
    del engine
    gc.collect()
    assert eventually(lambda: len(watchdogs()) == before)


def test_the_linker_refuses_the_same_name_twice(engine: Engine) -> None:
    linker = wasmtime.Linker(wasmtime.Engine())
    kind = wasmtime.FuncType([], [])
    callback = capi.IMPORT_CALLBACK(lambda *_: None)
    capi.define_import(linker, "a", "b", kind, callback)
    with pytest.raises(ValueError, match="defined twice"):
        capi.define_import(linker, "a", "b", kind, callback)
