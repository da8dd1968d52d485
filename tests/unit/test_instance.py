from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import wasmtime

from isthmus.counters import Counters
from isthmus.errors import (
    ActorBusy,
    ActorClosed,
    Cancelled,
    ContextFull,
    DeadlineExceeded,
    GuestExited,
    GuestInvalid,
    GuestTrapped,
    RegionError,
    SettingsError,
)
from isthmus.native import wasmtime_capi as capi
from isthmus.wasm import Engine
from tests.patience import PATIENCE_S
from tests.unit.wasm_guest import initialize, spawn, until, wasm

CLOSE = '(import "isthmus" "session_close" (func $close (param i32) (result i32)))'
CLOSE_CALL = '(func (export "close") (param i32) (result i32) (call $close (local.get 0)))'
SPIN = '(func $forever (export "spin") (loop $l (br $l)))'


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine() as engine:
        yield engine


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[BaseException]]:
    """Runs `work` in a thread; the list gets what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


def test_arguments_and_results_are_signed_32_bit(engine: Engine) -> None:
    guest = wasm(
        '(func (export "sub") (param i32 i32) (result i32) (i32.sub (local.get 0) (local.get 1)))',
        '(func (export "nothing") (param i32))',
    )
    with spawn(engine, guest) as instance:
        assert instance.call("sub", 3, 5) == -2
        assert instance.call("sub", -1, 0xFFFFFFFF) == 0
        assert instance.call("sub", 0x80000000, 0) == -(1 << 31)
        assert instance.call("nothing", 7) == 0


def test_a_wrong_number_of_arguments_never_reaches_the_guest(engine: Engine) -> None:
    with spawn(engine, wasm()) as instance:
        for args in [(), (1, 2), (1,) * 100]:
            with pytest.raises(TypeError, match="takes 1 arguments"):
                instance.call("on_message", *args)
        assert instance.call("on_message", 1) == 1


def test_only_exported_i32_functions_can_be_called(engine: Engine) -> None:
    with spawn(engine, wasm('(func (export "wide") (param i64))')) as instance:
        for name in ("absent", "wide", "memory"):
            with pytest.raises(GuestInvalid, match=name):
                instance.call(name)


def test_initialize_runs_when_asked_and_not_before(engine: Engine) -> None:
    with spawn(
        engine, wasm('(func (export "_initialize") (i32.store (i32.const 0) (i32.const 1)))')
    ) as instance:
        assert instance.memory.read(0, 1) == b"\0"
        assert instance.entry_points() == ["_initialize"]
        initialize(instance)
        assert instance.memory.read(0, 1) == b"\1"
    with spawn(engine, wasm()) as instance:
        assert instance.entry_points() == []


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("unreachable", "unreachable"),
        ("(drop (i32.load (i32.const 0x7fffffff)))", "out-of-bounds memory access"),
        ("(drop (i32.div_u (i32.const 1) (i32.const 0)))", "integer division by zero"),
        ("(drop (i32.div_s (i32.const 0x80000000) (i32.const -1)))", "integer overflow"),
        ("(drop (i32.trunc_f32_s (f32.const nan)))", "conversion of a float"),
        ("(call_indirect (i32.const 9))", "out-of-bounds table access"),
        ("(call_indirect (i32.const 0))", "indirect call to null"),
        ("(call_indirect (param i32) (i32.const 0) (i32.const 1))", "of another type"),
    ],
)
def test_traps_say_their_kind_and_where(engine: Engine, body: str, kind: str) -> None:
    guest = wasm(
        "(table 2 funcref) (elem (i32.const 1) func $inner)",
        f"(func $inner {body})",
        '(func $outer (export "outer") (call $inner))',
    )
    with spawn(engine, guest) as instance:
        with pytest.raises(GuestTrapped, match=f"test guest trapped: .*{kind}.*, in inner") as trap:
            instance.call("outer")
        assert trap.value.backtrace == ("inner", "outer")
        assert instance.call("on_message", 5) == 5


def test_functions_without_names_are_numbered(engine: Engine) -> None:
    guest = wasm('(func (export "f") unreachable)')
    with spawn(engine, guest) as instance, pytest.raises(GuestTrapped) as trap:
        instance.call("f")
    assert trap.value.backtrace == ("func[1]",)


def test_stack_overflow_is_a_trap(engine: Engine) -> None:
    with spawn(engine, wasm('(func $deep (export "deep") (call $deep) (call $deep))')) as instance:
        with pytest.raises(GuestTrapped, match="stack overflow, in deep") as trap:
            instance.call("deep")
        assert 1 < len(trap.value.backtrace) <= 32
        assert instance.call("on_message", 1) == 1


def test_stack_overflow_through_host_functions_is_a_trap(engine: Engine) -> None:
    guest = wasm(
        CLOSE,
        CLOSE_CALL,
        '(func $f (export "deep") (drop (call $close (i32.const 0))) (call $f) (call $f))',
    )
    with (
        spawn(engine, guest, {"session_close": lambda n: 0}) as instance,
        pytest.raises(GuestTrapped, match="stack overflow"),
    ):
        instance.call("deep")


def test_what_check_raises_ends_an_infinite_loop(engine: Engine) -> None:
    with spawn(engine, wasm(SPIN)) as instance:
        with pytest.raises(DeadlineExceeded, match="in time"):
            instance.call("spin", check=until(time.monotonic() + 0.02))
        assert instance.call("on_message", 2) == 2


def test_initialize_has_a_check(engine: Engine) -> None:
    guest = wasm('(func (export "_initialize") (loop $l (br $l)))')
    with spawn(engine, guest) as instance, pytest.raises(DeadlineExceeded):
        initialize(instance, check=until(time.monotonic() + 0.02))


def test_an_interrupted_guest_checks_at_once_and_no_other_guest_ends(engine: Engine) -> None:
    unwanted: set[str] = set()

    def check_of(name: str) -> Callable[[], None]:
        def check() -> None:
            if name in unwanted:
                raise Cancelled(name)

        return check

    with spawn(engine, wasm(SPIN)) as one, spawn(engine, wasm(SPIN)) as other:
        one.interrupt()
        assert one.call("on_message", 1) == 1
        thread, raised = in_thread(lambda: one.call("spin", check=check_of("one")))
        bystander, also_raised = in_thread(lambda: other.call("spin", check=check_of("other")))
        unwanted.add("one")
        one.interrupt()
        thread.join(PATIENCE_S)
        assert [type(error) for error in raised] == [Cancelled]
        assert bystander.is_alive()
        assert one.call("on_message", 3) == 3
        unwanted.add("other")
        other.interrupt()
        bystander.join(PATIENCE_S)
        assert [type(error) for error in also_raised] == [Cancelled]


def test_an_error_of_a_host_function_comes_out_as_the_same_object(engine: Engine) -> None:
    errors = [KeyError("a"), KeyboardInterrupt(), SystemExit(3), GuestExited(4), RecursionError()]
    remaining = list(errors)

    def fail(n: int) -> int:
        raise remaining.pop(0)

    with spawn(engine, wasm(CLOSE, CLOSE_CALL), {"session_close": fail}) as instance:
        for error in errors:
            with pytest.raises(type(error)) as caught:
                instance.call("close", 1)
            assert caught.value is error
        assert instance.counters.faults == 0
        assert instance.call("on_message", 8) == 8


def test_an_error_with_an_errno_goes_to_the_guest(engine: Engine) -> None:
    def full(n: int) -> int:
        raise ContextFull("full")

    counters = Counters()
    guest = wasm(CLOSE, CLOSE_CALL)
    with spawn(engine, guest, {"session_close": full}, counters=counters) as instance:
        assert instance.call("close", 1) == -8
        assert (counters.host_calls, counters.faults) == (1, 1)


def test_a_handler_that_returns_no_int_is_an_error(engine: Engine) -> None:
    guest = wasm(CLOSE, CLOSE_CALL)
    with (
        spawn(engine, guest, {"session_close": lambda n: None}) as instance,
        pytest.raises(TypeError),
    ):
        instance.call("close", 1)


def test_unknown_handlers_are_refused_and_missing_ones_answer_enotsup(engine: Engine) -> None:
    with pytest.raises(SettingsError, match="fly"):
        spawn(engine, wasm(), {"fly": lambda: 0})
    with spawn(engine, wasm(CLOSE, CLOSE_CALL)) as instance:
        assert instance.call("close", 1) == -11


def test_errors_of_eight_threads_do_not_mix(engine: Engine) -> None:
    guest = engine.compile(wasm(CLOSE, CLOSE_CALL), "guest")
    wrong: list[object] = []

    def work(number: int) -> None:
        def handler(n: int) -> int:
            if n % 3 == 0:
                raise ValueError((number, n))
            return n if n % 3 == 1 else -n

        with spawn(engine, guest, {"session_close": handler}) as instance:
            for n in range(300):
                try:
                    found: object = instance.call("close", n)
                except ValueError as error:
                    found = error.args[0]
                if found != {0: (number, n), 1: n, 2: -n}[n % 3]:
                    wrong.append((number, n, found))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_errors_of_wasmtime_py_users_do_not_come_out_here(engine: Engine) -> None:
    import wasmtime._func

    wasmtime._func.LAST_EXCEPTION = ValueError("of somebody else")
    try:
        with (
            spawn(engine, wasm('(func (export "f") unreachable)')) as instance,
            pytest.raises(GuestTrapped, match="unreachable"),
        ):
            instance.call("f")
        with pytest.raises(GuestTrapped, match="out-of-bounds"):
            spawn(engine, wasm('(data (i32.const 65536) "x")'))
    finally:
        wasmtime._func.LAST_EXCEPTION = None


def test_a_second_call_is_refused_while_one_runs(engine: Engine) -> None:
    inside, leave = threading.Event(), threading.Event()

    def wait(n: int) -> int:
        inside.set()
        return int(leave.wait(PATIENCE_S))

    with spawn(engine, wasm(CLOSE, CLOSE_CALL), {"session_close": wait}) as instance:
        thread, raised = in_thread(lambda: instance.call("close", 1))
        assert inside.wait(PATIENCE_S)
        with pytest.raises(ActorBusy):
            instance.call("on_message", 1)
        with pytest.raises(ActorBusy):
            instance.close()
        leave.set()
        thread.join(PATIENCE_S)
        assert raised == []
        assert instance.call("on_message", 1) == 1


def test_a_guest_may_call_another_through_the_host_but_not_itself(engine: Engine) -> None:
    guest = engine.compile(wasm(CLOSE, CLOSE_CALL), "guest")
    with spawn(engine, guest, {"session_close": lambda n: n + 1}) as inner:
        handlers = {"session_close": lambda n: inner.call("close", n) + 10}
        with spawn(engine, guest, handlers) as outer:
            assert outer.call("close", 1) == 12
            assert (outer.counters.host_calls, inner.counters.host_calls) == (1, 1)
    with (
        spawn(engine, guest, {"session_close": lambda n: itself.call("close", n)}) as itself,
        pytest.raises(ActorBusy),
    ):
        itself.call("close", 1)


def test_use_after_close_is_refused(engine: Engine) -> None:
    instance = spawn(engine, wasm())
    instance.call("on_message", 1)
    instance.close()
    instance.close()
    assert instance.closed
    assert instance.region.closed
    with pytest.raises(ActorClosed, match="closed"):
        instance.call("on_message", 1)


def test_a_dropped_instance_frees_everything(engine: Engine) -> None:
    instance = spawn(engine, wasm())
    instance.call("on_message", 1)
    store, region = weakref.ref(instance.store), weakref.ref(instance.region)
    del instance
    gc.collect()
    assert (store(), region()) == (None, None)


def test_another_base_address_is_refused_and_freed(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capi, "base_address", lambda memory, store: 0x1000)
    with pytest.raises(RegionError, match="is at 0x1000, its Region at"):
        spawn(engine, wasm())
    assert engine.memory_creator.n_memories == 0


def test_exports_show_globals_and_tables_and_no_functions(engine: Engine) -> None:
    guest = wasm('(global (export "g") (mut i32) (i32.const 41)) (table (export "t") 3 funcref)')
    with spawn(engine, guest) as instance:
        counter, table = instance.export("g"), instance.export("t")
        assert isinstance(counter, wasmtime.Global)
        assert isinstance(table, wasmtime.Table)
        assert instance.export("on_message") is None
        assert counter.value(instance.store) == 41
        assert table.size(instance.store) == 3


def test_a_trace_is_told_of_results_and_errors(engine: Engine) -> None:
    def even(n: int) -> int:
        if n % 2:
            raise ContextFull("odd")
        return n

    told: list[tuple[str, tuple[int, ...], object]] = []
    with spawn(engine, wasm(CLOSE, CLOSE_CALL), {"session_close": even}) as instance:
        instance.call("close", 2)
        instance.trace(lambda name, args, outcome: told.append((name, args, outcome)))
        assert (instance.call("close", 4), instance.call("close", 5)) == (4, -8)
    assert told[0] == ("session_close", (4,), 4)
    assert told[1][:2] == ("session_close", (5,))
    assert isinstance(told[1][2], ContextFull)
