"""`deliver` callbacks, which run on the thread that drives all agents."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from isthmus import Limits, Runtime
from isthmus.actor.reply import Piece, Reply
from isthmus.errors import ActorBusy, Cancelled, IsthmusError
from tests.unit.loop_guests import (
    ASKING,
    INIT,
    PATIENCE_S,
    QUICK,
    TALKS,
    TALKS_ON,
    Listener,
    Tool,
    on_loop,
    require_still,
    wait_until,
)
from tests.unit.wasm_guest import wasm


@pytest.fixture
def runtime(null_runtime: Runtime) -> Iterator[Runtime]:
    yield null_runtime
    for actor in null_runtime.actors:
        actor.close()
    require_still(null_runtime)


@pytest.fixture
def tool() -> Iterator[Tool]:
    tool = Tool()
    yield tool
    tool.free.set()


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


def test_a_stream_that_delivers_need_not_be_kept(runtime: Runtime, tool: Tool) -> None:
    actor, listener = runtime.spawn(TALKS, tools={"ask": tool}), Listener()
    actor.stream("x", deliver=listener)
    gc.collect()
    tool.free.set()
    assert isinstance(listener.outcome, Reply)
