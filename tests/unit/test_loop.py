"""The loop, with tiny guests on a device that computes nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from isthmus import Actor, Capacity, Limits, Runtime
from isthmus.actor import message as messages
from isthmus.actor import stream as streams
from isthmus.actor.loop import Loop
from isthmus.actor.reply import Piece, Reply
from isthmus.actor.stream import Stream
from isthmus.errors import (
    ActorBusy,
    ActorClosed,
    Cancelled,
    DeadlineExceeded,
    GuestFailed,
    GuestTrapped,
    IsthmusError,
    Overloaded,
)
from tests.unit.wasm_guest import wasm

PATIENCE_S = 5.0
EMIT = '(import "isthmus" "emit" (func $emit (param i32 i32) (result i32)))'
TOOL = '(import "isthmus" "tool_call" (func $tool (param i32 i32 i32 i32) (result i32)))'
ASK = "(call $tool (i32.const 8) (i32.const 3) (i32.const 0) (i32.const 0))"
DATA = '(data (i32.const 8) "ask")'


def on_message(body: str, *parts: str) -> bytes:
    function = f'(func (export "on_message") (param $n i32) (result i32) {body})'
    return wasm(*parts, on_message=function)


QUICK = on_message("(i32.const 0)")
ECHO_LENGTH = on_message("(i32.sub (i32.const 0) (local.get $n))")
TRAP = on_message("(unreachable)")
SPIN = on_message("(loop $l (br $l)) (i32.const 0)")
ASKING = on_message(f"(drop {ASK}) (i32.const 0)", TOOL, DATA)
TALKS = on_message(
    "(drop (call $emit (i32.const 8) (i32.const 3)))"
    f"(drop {ASK}) (call $emit (i32.const 8) (i32.const 3))",
    TOOL,
    EMIT,
    DATA,
)
"""Says `ask`, calls its tool, says `ask` again; ends with what the last call says."""
_TALK = (
    "(loop $l (local.set $n (call $emit (i32.const 8) (i32.const 3)))"
    " (br_if $l (i32.ge_s (local.get $n) (i32.const 0)))) (local.get $n)"
)
TALKS_ON = on_message(_TALK, EMIT, DATA)
"""Says `ask` until it is stopped."""
ASKS_AND_TALKS_ON = on_message(f"(drop {ASK}) {_TALK}", TOOL, EMIT, DATA)
INIT = '(func (export "_initialize") {body})'


@pytest.fixture(scope="module")
def shared() -> Iterator[Runtime]:
    with Runtime(device="null", threads=1) as runtime:
        yield runtime


@pytest.fixture
def runtime(shared: Runtime) -> Iterator[Runtime]:
    """The module's runtime, which every test leaves as it was."""
    yield shared
    for actor in shared.actors:
        actor.close()
    require_still(shared)


@pytest.fixture
def narrow() -> Iterator[Runtime]:
    """One message at a time."""
    with Runtime(device="null", threads=1, capacity=Capacity(running=1, waiting=8)) as runtime:
        yield runtime
        for actor in runtime.actors:
            actor.close()
        require_still(runtime)


def loop_of(runtime: Runtime) -> Loop:
    return runtime._platform.loop


def on_loop(runtime: Runtime, work: Callable[[], Any]) -> Any:
    return runtime.device.compute_thread.run(work)


def require_still(runtime: Runtime) -> None:
    loop = loop_of(runtime)
    wait_until(lambda: (loop.places.n_running, loop.places.n_waiting) == (0, 0))
    assert on_loop(runtime, lambda: not loop._has_work())
    assert not loop.places._line


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


class Tool:
    """A tool that waits until it is let go."""

    def __init__(self) -> None:
        self.inside = threading.Semaphore(0)
        self.free = threading.Event()

    def __call__(self, _: bytes) -> bytes:
        self.inside.release()
        self.free.wait(PATIENCE_S)
        return b"answer"

    def wait(self, n: int = 1) -> None:
        for _ in range(n):
            assert self.inside.acquire(timeout=PATIENCE_S)


@pytest.fixture
def tool() -> Iterator[Tool]:
    tool = Tool()
    yield tool
    tool.free.set()


class Listener:
    """A `deliver` callback that keeps what it hears, and does something first."""

    def __init__(self, first: Callable[[Piece], object] = lambda piece: None) -> None:
        self.heard: list[Piece] = []
        self.ended = threading.Event()
        self._first = first
        self._streams: list[Stream] = []

    def listen(self, actor: Actor) -> None:
        """Sends a message. The stream is kept: a message whose stream is dropped is stopped."""
        self._streams.append(actor.stream("x", deliver=self))

    def __call__(self, piece: Piece) -> None:
        self.heard.append(piece)
        if not isinstance(piece, str):
            self.ended.set()
        self._first(piece)

    @property
    def outcome(self) -> Piece:
        assert self.ended.wait(PATIENCE_S)
        return self.heard[-1]


# ---------------------------------------------------------------------------------- messages


def test_a_message_is_answered(runtime: Runtime) -> None:
    actor = runtime.spawn(QUICK)
    for _ in range(3):
        assert actor.send("x").data == b""
    with pytest.raises(GuestFailed, match="77"):
        runtime.spawn(ECHO_LENGTH).send("x" * 77)


def test_an_actor_takes_one_message_at_a_time(runtime: Runtime, tool: Tool) -> None:
    actor = runtime.spawn(ASKING, tools={"ask": tool})
    stream = actor.stream("x")
    tool.wait()
    with pytest.raises(ActorBusy, match="another message"):
        actor.send("x")
    tool.free.set()
    list(stream)
    actor.send("x")


def test_messages_that_wait_are_handled_in_order(narrow: Runtime, tool: Tool) -> None:
    order: list[int] = []
    first = narrow.spawn(SPIN)
    running = first.stream("x")
    actors = [narrow.spawn(QUICK) for _ in range(8)]
    listeners = []
    for number, actor in enumerate(actors):
        listener = Listener(lambda piece, number=number: order.append(number))  # type: ignore[misc]
        listener.listen(actor)
        listeners.append(listener)
    assert order == []
    first.cancel()
    assert all(isinstance(it.outcome, Reply) for it in listeners)
    assert order == list(range(8))
    with pytest.raises(Cancelled):
        list(running)


def test_a_guest_that_traps_ends_alone(runtime: Runtime, tool: Tool) -> None:
    asking = runtime.spawn(ASKING, tools={"ask": tool})
    stream = asking.stream("x")
    tool.wait()
    trapping = runtime.spawn(TRAP)
    with pytest.raises(GuestTrapped):
        trapping.send("x")
    assert trapping.state == "closed"
    tool.free.set()
    list(stream)


def test_a_guest_that_spins_keeps_nobody_waiting(runtime: Runtime) -> None:
    spinning, quick = runtime.spawn(SPIN), runtime.spawn(QUICK)
    stream = spinning.stream("x")
    for _ in range(20):
        quick.send("x")
    assert not stream.ended
    spinning.cancel()
    with pytest.raises(Cancelled):
        list(stream)


def test_it_ends_by_its_deadline_wherever_it_is(narrow: Runtime, tool: Tool) -> None:
    spinning, waiting = narrow.spawn(SPIN), narrow.spawn(QUICK)
    stream = spinning.stream("x", deadline_s=0.1)
    with pytest.raises(DeadlineExceeded, match="before there was a place"):
        waiting.send("x", deadline_s=0.02)
    with pytest.raises(DeadlineExceeded, match="in time"):
        list(stream)
    assert waiting.state == "idle"


def test_an_error_that_nobody_expected_is_heard(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    actor, other = runtime.spawn(QUICK), runtime.spawn(QUICK)

    def fails(*_: object) -> None:
        raise ZeroDivisionError("a fault of ours")

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR, "isthmus"):
        patch.setattr(actor, "_charge", fails)
        with pytest.raises(ZeroDivisionError):
            actor.send("x")
    assert "nobody expected" in caplog.text
    other.send("x")
    actor._leave()


# ---------------------------------------------------------------------------------- deliver


def test_what_is_said_is_told_before_the_tool_has_returned(runtime: Runtime, tool: Tool) -> None:
    actor, listener = runtime.spawn(TALKS, tools={"ask": tool}), Listener()
    listener.listen(actor)
    tool.wait()
    wait_until(lambda: listener.heard == ["ask"])
    tool.free.set()
    assert isinstance(listener.outcome, Reply)
    assert listener.heard[:-1] == ["ask", "ask"]
    assert listener.outcome.text == "askask"


def attempts(runtime: Runtime, tool: Tool) -> dict[str, Callable[[], object]]:
    """What a callback must not do, since it would wait for an actor."""
    running, idle = runtime.spawn(ASKING, tools={"ask": tool}), runtime.spawn(QUICK)
    stream = running.stream("x")
    beginning = runtime.load_guest(wasm(INIT.format(body="")))
    tool.wait()
    return {
        "send": lambda: idle.send("x"),
        "next": lambda: next(stream),
        "close the stream": stream.close,
        "close a running actor": running.close,
        "spawn": lambda: runtime.spawn(beginning),
    }


@pytest.mark.parametrize(
    "what", ["send", "next", "close the stream", "close a running actor", "spawn"]
)
def test_a_callback_cannot_wait_for_an_actor(runtime: Runtime, tool: Tool, what: str) -> None:
    attempt, errors = attempts(runtime, tool)[what], []

    def try_it(piece: Piece) -> None:
        try:
            attempt()
        except ActorBusy as error:
            errors.append(str(error))

    listener = Listener(try_it)
    listener.listen(runtime.spawn(QUICK))
    assert isinstance(listener.outcome, Reply)
    wait_until(lambda: len(errors) == 1)
    assert "the thread that drives all agents" in errors[0]
    tool.free.set()


@pytest.mark.parametrize("kind", [ValueError, ActorBusy, SystemExit, KeyboardInterrupt])
def test_a_callback_that_raises_stops_its_message(
    runtime: Runtime, tool: Tool, kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """Those who are told in the same turn hear as ever."""

    def fails(piece: Piece) -> None:
        raise kind("its own fault")

    bad = [Listener(fails) for _ in range(2)]
    good = [Listener() for _ in range(4)]
    listeners = [good[0], bad[0], good[1], good[2], bad[1], good[3]]
    actors = [runtime.spawn(TALKS, tools={"ask": tool}) for _ in listeners]
    with caplog.at_level(logging.CRITICAL, "isthmus"):
        for actor, listener in zip(actors, listeners, strict=True):
            listener.listen(actor)
        tool.wait(len(actors))
        tool.free.set()
        for listener in good:
            assert isinstance(listener.outcome, Reply)
            assert listener.outcome.text == "askask"
        for listener in bad:
            assert isinstance(listener.outcome, Cancelled)  # the guest gives up at ECANCELED
            assert listener.heard[:-1] == ["ask"]
        on_loop(runtime, lambda: None)
    assert all(actor.state == "idle" for actor in actors)


def test_a_callback_that_raises_for_a_guest_that_goes_on_and_on(
    runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(piece: Piece) -> None:
        raise ValueError("its own fault")

    listener = Listener(fails)
    with caplog.at_level(logging.CRITICAL, "isthmus"):
        listener.listen(runtime.spawn(TALKS_ON, limits=Limits(output_nbytes=None)))
        assert isinstance(listener.outcome, IsthmusError)
        on_loop(runtime, lambda: None)


def test_a_slow_callback_costs_time_and_nothing_else(runtime: Runtime) -> None:
    listeners = [Listener(lambda piece: time.sleep(0.005)) for _ in range(4)]
    for listener in listeners:
        listener.listen(runtime.spawn(TALKS, tools={"ask": bytes}))
    for listener in listeners:
        assert isinstance(listener.outcome, Reply)
        assert "".join(map(str, listener.heard[:-1])) == "askask"


def test_a_callback_may_send_without_waiting(runtime: Runtime) -> None:
    """A chain of actors, each of which is sent to when the one before has answered."""
    last = first = Listener()
    for _ in range(20):
        actor = runtime.spawn(QUICK)
        first = Listener(lambda _, actor=actor, to=first: to.listen(actor))  # type: ignore[misc]
    first.listen(runtime.spawn(QUICK))
    assert isinstance(last.outcome, Reply)


def test_a_callback_may_send_to_the_actor_that_has_just_answered(runtime: Runtime) -> None:
    actor, done = runtime.spawn(QUICK), threading.Event()

    def again(_: Piece) -> None:
        if actor.n_messages == 50:
            done.set()
        else:
            listener.listen(actor)

    listener = Listener(again)
    listener.listen(actor)
    assert done.wait(PATIENCE_S)
    assert len(listener.heard) == 50


# ---------------------------------------------------------------------------------- its end


def test_a_message_that_is_cancelled_while_it_is_sent(
    narrow: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another thread, before the loop knows of it: it ends, and nobody's place is lost."""
    loop = loop_of(narrow)
    send = loop.send
    busy = narrow.spawn(SPIN)
    for is_busy in (False, True, False):
        stream = busy.stream("x") if is_busy else None
        actor = narrow.spawn(QUICK)

        def cancelled_first(message: messages.Message, actor: Actor = actor) -> None:
            actor.cancel()
            on_loop(narrow, lambda: None)
            send(message)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "send", cancelled_first)
            with pytest.raises(Cancelled):
                actor.send("x")
        assert actor.state == "idle"
        if stream is not None:
            busy.cancel()
            with pytest.raises(Cancelled):
                list(stream)
        require_still(narrow)


def test_the_place_of_a_tools_caller_is_free(narrow: Runtime, tool: Tool) -> None:
    asking, quick = narrow.spawn(ASKING, tools={"ask": tool}), narrow.spawn(QUICK)
    stream = asking.stream("x")
    tool.wait()
    for _ in range(3):
        quick.send("x")
    tool.free.set()
    list(stream)


@pytest.mark.parametrize("how", ["cancel", "deadline", "close", "drop", "stop"])
def test_what_ends_while_its_tool_runs(
    runtime: Runtime, tool: Tool, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Once the tool has returned: nobody can end it before."""
    monkeypatch.setattr(messages, "STOP_GRACE_S", 0.02)
    actor = runtime.spawn(ASKS_AND_TALKS_ON, tools={"ask": tool}, limits=Limits(output_nbytes=None))
    listener: Any = Listener()
    deadline_s = 0.02 if how == "deadline" else None
    stream = actor.stream("x", deliver=listener, deadline_s=deadline_s)
    tool.wait()
    if how == "cancel":
        actor.cancel()
    elif how == "stop":
        actor.stop()
    elif how == "close":
        threading.Thread(target=actor.close).start()
        wait_until(lambda: actor.state == "closed")
    elif how == "drop":
        del stream
    time.sleep(0.05)
    assert not listener.ended.is_set()
    first = on_loop(runtime, lambda: loop_of(runtime)._timers.first)
    assert first is None or first > time.monotonic()  # the loop does not spin
    tool.free.set()
    expected = DeadlineExceeded if how == "deadline" else Cancelled
    assert isinstance(listener.outcome, expected)
    wait_until(lambda: actor.state == ("idle" if how in ("stop", "drop") else "closed"))


def test_a_dropped_stream_ends_a_guest_that_does_not_listen(
    narrow: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "STOP_GRACE_S", 0.05)
    spinning, quick = narrow.spawn(SPIN), narrow.spawn(QUICK)
    stream = spinning.stream("x")
    message = spinning._message
    assert message is not None
    wait_until(lambda: message.is_slow)
    del stream
    quick.send("x")
    assert spinning.state == "closed"


def test_closing_the_stream_of_a_guest_that_does_not_listen(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "STOP_GRACE_S", 0.02)
    spinning = runtime.spawn(SPIN)
    stream = spinning.stream("x")
    message = spinning._message
    assert message is not None
    wait_until(lambda: message.begun)
    stream.close()
    with pytest.raises(Cancelled):
        list(stream)
    assert spinning.state == "closed"


def test_an_actor_closes_whatever_it_does(narrow: Runtime) -> None:
    running, waiting, idle = narrow.spawn(SPIN), narrow.spawn(QUICK), narrow.spawn(QUICK)
    streams = [running.stream("x"), waiting.stream("x")]
    for actor in (waiting, idle, running):
        actor.close()
        assert actor.state == "closed"
        with pytest.raises(ActorClosed):
            actor.send("x")
    for stream in streams:
        with pytest.raises(Cancelled):
            list(stream)


def test_timers_of_messages_that_ended_are_dropped(runtime: Runtime) -> None:
    actor = runtime.spawn(QUICK)
    for _ in range(700):
        actor.send("x", deadline_s=3600)
    assert on_loop(runtime, lambda: len(loop_of(runtime)._timers._heap)) < 400


# ---------------------------------------------------------------------------------- beginnings


def test_a_beginning_that_traps_or_spins_is_told(runtime: Runtime) -> None:
    with pytest.raises(GuestTrapped):
        runtime.spawn(wasm(INIT.format(body="(unreachable)")))
    with pytest.raises(DeadlineExceeded):
        runtime.spawn(wasm(INIT.format(body="(loop $l (br $l))")), limits=Limits(deadline_s=0.05))


def test_a_beginning_takes_no_place(narrow: Runtime) -> None:
    spinning = narrow.spawn(SPIN)
    stream = spinning.stream("x")
    narrow.spawn(wasm(INIT.format(body="")))
    spinning.cancel()
    with pytest.raises(Cancelled):
        list(stream)


# ---------------------------------------------------------------------------------- threads


def test_a_guest_that_finds_no_thread_ends_and_the_next_goes_on(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "isthmus slow guest":
            raise RuntimeError("can't start new thread")
        start(thread)

    loop = loop_of(runtime)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_slow", type(loop._slow)(1, lambda: False))
        patch.setattr(threading.Thread, "start", refuse)
        first = runtime.spawn(SPIN)
        with pytest.raises(Overloaded, match="can't start new thread"):
            first.send("x")
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(DeadlineExceeded):
            runtime.spawn(SPIN).send("x", deadline_s=0.05)


def test_messages_that_wait_have_no_thread() -> None:
    capacity = Capacity(running=1, waiting=300)
    with Runtime(device="null", threads=1, capacity=capacity) as runtime:
        spinning, guest = runtime.spawn(SPIN), runtime.load_guest(QUICK)
        running = spinning.stream("x")
        actors = [runtime.spawn(guest) for _ in range(200)]
        before = threading.active_count()
        waiting = [actor.stream("x") for actor in actors]
        assert threading.active_count() <= before + 1  # of the slow lane
        spinning.cancel()
        for stream in waiting:
            list(stream)
        with pytest.raises(Cancelled):
            list(running)
