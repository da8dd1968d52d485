"""The loop, with tiny guests on a device that computes nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from isthmus import Actor, Capacity, Limits, Runtime
from isthmus.actor import message as messages
from isthmus.actor import stream as streams
from isthmus.actor.reply import Reply
from isthmus.errors import (
    ActorBusy,
    ActorClosed,
    Cancelled,
    DeadlineExceeded,
    GuestFailed,
    GuestTrapped,
    Overloaded,
)
from tests.unit.loop_guests import (
    ASKING,
    ASKS_AND_TALKS_ON,
    ECHO_LENGTH,
    INIT,
    QUICK,
    SPIN,
    TRAP,
    Listener,
    Tool,
    loop_of,
    on_loop,
    require_still,
    wait_until,
)
from tests.unit.wasm_guest import wasm


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


@pytest.fixture
def tool() -> Iterator[Tool]:
    tool = Tool()
    yield tool
    tool.free.set()


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
    with pytest.raises(DeadlineExceeded, match="no place for the message within"):
        waiting.send("x", deadline_s=0.02)
    with pytest.raises(DeadlineExceeded, match=r"within 0.1 s \(deadline_s\)"):
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


@pytest.mark.parametrize("how", ["cancel", "deadline", "close", "abandon", "stop"])
def test_what_ends_while_its_tool_runs(
    runtime: Runtime, tool: Tool, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """At once, though nobody can end the tool, which is a function that waits."""
    monkeypatch.setattr(messages, "STOP_GRACE_S", 60.0)
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
    elif how == "abandon":
        stream.abandon()
    expected = DeadlineExceeded if how == "deadline" else Cancelled
    assert isinstance(listener.outcome, expected)
    first = on_loop(runtime, lambda: loop_of(runtime)._timers.first)
    assert first is None or first > time.monotonic()  # the loop does not spin
    tool.free.set()
    wait_until(lambda: actor.state == ("idle" if how in ("stop", "abandon") else "closed"))


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
        patch.setattr(loop._elsewhere, "_slow", type(loop._elsewhere._slow)(1, lambda: False))
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
