from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from isthmus.abi import Errno
from isthmus.errors import (
    ActorBusy,
    ActorClosed,
    Cancelled,
    ContextFull,
    GuestFault,
    GuestTrapped,
    LimitExceeded,
)
from isthmus.wasm import SLICE_OVER, SLICE_S, Call, Engine, Guest, Instance
from tests.unit.asking_guest import (
    GUEST,
    PATIENCE_S,
    Asked,
    ask,
    asked_by,
    begun,
    in_thread,
    result_of,
)
from tests.unit.wasm_guest import spawn, wasm


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine() as engine:
        yield engine


@pytest.fixture(scope="module")
def guest(engine: Engine) -> Guest:
    return engine.compile(GUEST, "test guest", trusted=True)


@pytest.fixture
def instance(engine: Engine, guest: Guest) -> Iterator[Instance]:
    """Its host function awaits."""
    with spawn(engine, guest, {"session_close": ask}) as instance:
        yield instance


def test_many_guests_are_resumed_in_turn_on_one_thread(engine: Engine, guest: Guest) -> None:
    instances = [spawn(engine, guest, {"session_close": ask}) for _ in range(40)]
    ready = [(instance.begin("sum", 3).run(), None) for instance in instances]
    results: list[int] = []
    order: list[list[int]] = []
    while ready:
        order.append([])
        waiting = []
        for i, (running, answer) in enumerate(ready):
            try:
                asked = asked_by(running, answer)
            except StopIteration as returned:
                results.append(returned.value)
            else:
                order[-1].append(asked.number)
                waiting.append((running, 100 * i + asked.number))
        ready = waiting
    assert order == [[3] * 40, [2] * 40, [1] * 40, []]
    assert results == [300 * i + 6 for i in range(40)]
    for instance in instances:
        assert instance.counters.host_calls == 3
        instance.close()


def test_each_step_may_be_on_another_thread(instance: Instance) -> None:
    _, running = begun(instance, "sum", 3)
    answer = None
    for n in (3, 2, 1):
        asked = in_thread(partial(asked_by, running, answer))
        assert asked.number == n
        answer = n
    assert in_thread(lambda: result_of(running, 1)) == 6


def test_arguments_and_results_after_a_suspension_are_whole(engine: Engine, guest: Guest) -> None:
    async def late() -> int:
        return await Asked(0)

    with spawn(engine, guest, {"clock_ns": late, "session_close": ask}) as instance:
        for value in (-1, 1 << 62, -(1 << 40)):
            _, running = begun(instance, "now")
            asked_by(running)
            assert result_of(running, value) == 0
            assert int.from_bytes(instance.memory.read(0, 8), "little", signed=True) == value
        _, running = begun(instance, "ask", 0x8000_0001)
        assert asked_by(running).number == 0x8000_0001
        assert result_of(running, 0xFFFF_FFFE) == -2


def test_an_error_with_an_errno_is_the_guests(instance: Instance) -> None:
    for error, code in ((ContextFull("full"), -8), (GuestFault(Errno.EBADF), -Errno.EBADF)):
        call, running = begun(instance, "ask", 1)
        asked_by(running)
        with pytest.raises(StopIteration) as returned:
            running.throw(error)
        assert returned.value.value == code
        assert call.closed
    assert instance.counters.faults == 2


@pytest.mark.parametrize("error", [Cancelled("unwanted"), ValueError("x"), KeyboardInterrupt()])
def test_any_other_error_ends_the_call_and_is_the_very_same(
    instance: Instance, error: BaseException
) -> None:
    call, running = begun(instance, "sum", 5)
    asked_by(running)
    with pytest.raises(type(error)) as caught:
        running.throw(error)
    assert caught.value is error
    assert call.closed
    assert instance.counters.faults == 0
    assert instance.call("on_message", 4) == 4


def test_a_thrown_error_goes_through_the_host_function(engine: Engine, guest: Guest) -> None:
    seen: list[BaseException] = []

    async def patient(number: int) -> int:
        try:
            return await Asked(number)
        except Cancelled as error:
            seen.append(error)
            return 7

    with spawn(engine, guest, {"session_close": patient}) as instance:
        _, running = begun(instance, "ask", 1)
        asked_by(running)
        with pytest.raises(StopIteration) as returned:
            running.throw(Cancelled("unwanted"))
        assert (returned.value.value, len(seen)) == (7, 1)


@pytest.mark.parametrize("result", [None, 1.5, "x"])
def test_an_awaited_result_that_is_no_int_is_an_error(instance: Instance, result: Any) -> None:
    _, running = begun(instance, "ask", 1)
    asked_by(running)
    with pytest.raises(TypeError):
        running.send(result)
    assert instance.call("on_message", 4) == 4


def test_a_function_without_a_result_cannot_return_an_errno(instance: Instance) -> None:
    with pytest.raises(Exception, match="exited with status 3"):
        instance.call("leave")


def test_an_endless_loop_is_sliced_and_others_go_on_meanwhile(
    engine: Engine, guest: Guest, instance: Instance
) -> None:
    n_checks = 0

    def check() -> None:
        nonlocal n_checks
        n_checks += 1

    with spawn(engine, guest) as other:
        endless, spinning = begun(other, "spin", check=check)
        _, running = begun(instance, "sum", 4)
        answer = None
        for n in (4, 3, 2, 1):
            assert spinning.send(None) is SLICE_OVER
            assert asked_by(running, answer).number == n
            answer = 1
        assert result_of(running, 1) == 4
        assert n_checks >= 3
        endless.close()
        assert other.call("on_message", 2) == 2


def test_an_error_thrown_between_two_slices_ends_the_call(instance: Instance) -> None:
    for error in (ContextFull("has an errno"), Cancelled("has none")):
        call, running = begun(instance, "spin")
        assert running.send(None) is SLICE_OVER
        with pytest.raises(type(error)) as caught:
            running.throw(error)
        assert caught.value is error
        assert call.closed


def test_straight_code_that_only_makes_host_calls_is_sliced(engine: Engine, guest: Guest) -> None:
    def slow(_n: int) -> int:
        end = time.thread_time() + 0.001
        while time.thread_time() < end:
            pass
        return 0

    with spawn(engine, guest, {"session_close": slow}) as instance:
        call, running = begun(instance, "many")
        assert running.send(None) is SLICE_OVER
        assert instance.counters.host_calls < 300
        with pytest.raises(Cancelled):
            running.throw(Cancelled("unwanted"))
        assert call.closed
        made = instance.counters.host_calls

        def unwanted() -> None:
            raise Cancelled("unwanted")

        with pytest.raises(Cancelled):
            instance.call("many", check=unwanted)
        assert made <= instance.counters.host_calls < made + 300


def test_time_without_a_processor_counts_for_no_slice(engine: Engine, guest: Guest) -> None:
    """Otherwise a guest that computes for microseconds would be slow whenever others compute."""

    def descheduled(_n: int) -> int:
        time.sleep(3 * SLICE_S)
        return 0

    with spawn(engine, guest, {"session_close": descheduled}) as instance:
        _, running = begun(instance, "sum", 8)
        with pytest.raises(StopIteration) as ended:
            running.send(None)
        assert ended.value.value == 0


def test_a_host_function_that_waited_begins_a_new_slice(instance: Instance) -> None:
    """Nor are the epochs that it missed taken for its own."""
    _, running = begun(instance, "sum", 8)
    n_sliced, answer = 0, None
    for n in (8, 7, 6, 5, 4, 3, 2, 1):
        while (asked := running.send(answer)) is SLICE_OVER:
            n_sliced, answer = n_sliced + 1, None
        assert asked.number == n
        time.sleep(0.012)
        answer = 0
    assert n_sliced < 7, "it is sliced after each wait"
    assert result_of(running, 0) == 0


def test_a_guest_whose_every_call_waits_is_checked(instance: Instance) -> None:
    """No epoch ever suspends it: each wait outlasts the slice."""
    n_checks = 0

    def check() -> None:
        nonlocal n_checks
        n_checks += 1
        if n_checks > 3:
            raise Cancelled("its time is over")

    _, running = begun(instance, "sum", 1000, check=check)

    def answer_late() -> None:
        asked_by(running)
        for _ in range(100):
            time.sleep(1.2 * SLICE_S)
            asked_by(running, 1)

    with pytest.raises(Cancelled, match="its time is over"):
        answer_late()
    assert instance.call("now") == 0


def test_call_refuses_to_wait(instance: Instance) -> None:
    with pytest.raises(RuntimeError, match="waits, and nobody would wake it"):
        instance.call("ask", 1)
    assert instance.call("on_message", 4) == 4


def test_close_ends_a_suspended_call(instance: Instance) -> None:
    call, running = begun(instance, "ask", 1)
    asked_by(running)
    with pytest.raises(ActorBusy):
        instance.begin("on_message", 1)
    with pytest.raises(ActorBusy, match="close the call first"):
        instance.close()
    call.close()
    call.close()
    assert call.closed
    assert instance.call("on_message", 1) == 1
    with pytest.raises(ActorClosed, match="cannot go on"):
        running.send(5)


def test_a_call_that_is_closed_while_another_is_open_leaves_that_alone(instance: Instance) -> None:
    first, running = begun(instance, "ask", 1)
    asked_by(running)
    first.close()
    _, second = begun(instance, "ask", 2)
    assert asked_by(second).number == 2
    with pytest.raises(ActorClosed):
        running.send(5)
    assert result_of(second, 6) == 6


def test_closing_the_coroutine_closes_the_call(engine: Engine, guest: Guest) -> None:
    ended: list[str] = []

    async def careful(number: int) -> int:
        try:
            return await Asked(number)
        finally:
            ended.append("handler")

    instance = spawn(engine, guest, {"session_close": careful})
    call, running = begun(instance, "ask", 1)
    asked_by(running)
    running.close()
    assert (ended, call.closed) == (["handler"], True)
    instance.close()


def test_a_host_function_may_close_the_call_that_called_it(engine: Engine, guest: Guest) -> None:
    calls: list[Call] = []

    def end(_n: int) -> int:
        calls[0].close()
        return 1

    with spawn(engine, guest, {"session_close": end}) as instance:
        call, running = begun(instance, "sum", 3)
        calls.append(call)
        with pytest.raises(ActorClosed):
            asked_by(running)
        assert instance.call("on_message", 1) == 1


def test_a_call_cannot_be_closed_while_its_guest_runs(instance: Instance) -> None:
    raised: list[BaseException] = []
    closing = threading.Event()

    def check() -> None:
        if closing.is_set():
            raise Cancelled("unwanted")

    call, running = begun(instance, "spin", check=check)

    def drive() -> None:
        try:
            result_of(running)
        except Cancelled as error:
            raised.append(error)

    thread = threading.Thread(target=drive)
    thread.start()
    n_busy = 0
    end = time.monotonic() + PATIENCE_S
    while n_busy == 0 and time.monotonic() < end:
        with suppress(ActorBusy):
            call._fiber.require_idle()
            continue
        n_busy += 1
        with pytest.raises(ActorBusy), suppress(ActorClosed):
            instance.close()
    closing.set()
    thread.join(PATIENCE_S)
    assert (n_busy, len(raised), call.closed) == (1, 1, True)


def test_a_trap_after_a_suspension(instance: Instance) -> None:
    _, running = begun(instance, "trap", 1)
    asked_by(running)
    with pytest.raises(GuestTrapped, match="unreachable, in func"):
        result_of(running, 1)
    assert instance.call("on_message", 1) == 1


def test_fuel_runs_out_on_a_fiber() -> None:
    with Engine(metered=True) as engine, spawn(engine, GUEST, {"session_close": ask}) as instance:
        instance.fuel = 1_000
        _, running = begun(instance, "ask", 1)
        asked_by(running)
        assert result_of(running, 5) == 5
        assert 0 < instance.fuel < 1_000
        with pytest.raises(LimitExceeded) as caught:
            instance.call("spin")
        assert caught.value.limit == "fuel"


def test_guests_with_a_64_bit_memory() -> None:
    text = wasm(
        '(import "isthmus" "random" (func $f (param i64 i64) (result i32)))',
        '(func (export "go") (result i32) (call $f (i64.const -2) (i64.const 0x100000003)))',
        memory='(memory (export "memory") i64 1)',
    )
    got: list[tuple[int, int]] = []

    async def random(ptr: int, nbytes: int) -> int:
        got.append((ptr, nbytes))
        return await Asked(0)

    with Engine(is_64=True) as engine, spawn(engine, text, {"random": random}) as instance:
        _, running = begun(instance, "go")
        asked_by(running)
        assert result_of(running, -3) == -3
    assert got == [((1 << 64) - 2, 0x1_0000_0003)]


def test_a_trace_is_told_of_what_was_awaited(instance: Instance) -> None:
    told: list[tuple[str, tuple[int, ...], object]] = []
    instance.trace(lambda name, args, outcome: told.append((name, args, outcome)))
    _, running = begun(instance, "ask", 4)
    asked_by(running)
    assert told == []
    assert result_of(running, 9) == 9
    assert told == [("session_close", (4,), 9)]
    _, running = begun(instance, "ask", 5)
    asked_by(running)
    error = Cancelled("unwanted")
    with pytest.raises(Cancelled):
        running.throw(error)
    assert told[1:] == [("session_close", (5,), error)]
