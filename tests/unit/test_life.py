"""An actor's states, and who may do what in each of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from isthmus.actor.life import TRANSITIONS, Life, State
from isthmus.errors import ActorBusy, ActorClosed
from tests.patience import PATIENCE_S

ALLOWED = {
    ("idle", "running"),
    ("idle", "held"),
    ("idle", "evicting"),
    ("evicted", "running"),
    ("evicted", "held"),
    ("evicted", "evicting"),
    ("running", "idle"),
    ("running", "evicted"),
    ("held", "idle"),
    ("held", "evicted"),
    ("evicting", "idle"),
    ("evicting", "evicted"),
}
TAKEN = [State.RUNNING, State.HELD, State.EVICTING]


def in_state(state: State) -> Life:
    """A life that came into a state the usual way."""
    life = Life()
    if state is State.EVICTED:
        life.take(State.EVICTING)
        life.leave(evicted=True)
    elif state is State.CLOSED:
        life.end("it was told to")
    elif state is not State.IDLE:
        life.take(state)
    assert life.state is state
    return life


def started(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def ended(thread: threading.Thread) -> None:
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


@pytest.mark.parametrize(("before", "after"), [(a, b) for a in State for b in State])
def test_every_transition(before: State, after: State) -> None:
    assert (after in TRANSITIONS[before]) == ((before.value, after.value) in ALLOWED)


@pytest.mark.parametrize(("before", "after"), [(a, b) for a in State for b in TAKEN])
def test_who_can_take_it(before: State, after: State) -> None:
    life = in_state(before)
    is_allowed = (before.value, after.value) in ALLOWED
    assert life.try_take(after) == is_allowed
    assert life.state is (after if is_allowed else before)


@pytest.mark.parametrize(("before", "after"), [(a, b) for a in State for b in TAKEN])
def test_why_it_cannot_be_taken(before: State, after: State) -> None:
    life = in_state(before)
    if (before.value, after.value) in ALLOWED:
        life.take(after)
        assert life.state is after
    elif before is State.CLOSED:
        with pytest.raises(ActorClosed, match="it was told to"):
            life.take(after)
    elif before is not State.EVICTING:  # whose end is waited for
        with pytest.raises(ActorBusy, match="another message"):
            life.take(after)


@pytest.mark.parametrize("before", TAKEN)
@pytest.mark.parametrize("evicted", [False, True])
def test_leaving_it(before: State, *, evicted: bool) -> None:
    life = in_state(before)
    life.leave(evicted=evicted)
    assert life.state is (State.EVICTED if evicted else State.IDLE)


@pytest.mark.parametrize("before", [State.IDLE, State.EVICTED])
def test_nobody_leaves_what_nobody_took(before: State) -> None:
    with pytest.raises(AssertionError, match="cannot end"):
        in_state(before).leave(evicted=False)


@pytest.mark.parametrize("after", TAKEN)
def test_an_eviction_is_waited_for(after: State) -> None:
    life = in_state(State.EVICTING)
    taker = started(lambda: life.take(after))
    time.sleep(0.01)
    assert taker.is_alive()
    assert life.state is State.EVICTING
    life.leave(evicted=True)
    ended(taker)
    assert life.state is after


def test_an_eviction_after_which_it_is_closed() -> None:
    life, heard = in_state(State.EVICTING), []

    def take() -> None:
        try:
            life.take(State.RUNNING)
        except ActorClosed as error:
            heard.append(str(error))

    taker = started(take)
    life.end("nobody wants it")
    life.leave(evicted=True)
    ended(taker)
    assert heard == ["the actor is closed: nobody wants it"]


def test_one_of_many_takes_it() -> None:
    life, took = Life(), []
    barrier = threading.Barrier(8)

    def take() -> None:
        barrier.wait(PATIENCE_S)
        took.append(life.try_take(State.RUNNING))

    for thread in [started(take) for _ in range(8)]:
        ended(thread)
    assert took.count(True) == 1


@pytest.mark.parametrize("before", TAKEN)
def test_closed_while_it_is_taken(before: State) -> None:
    """It counts as closed at once; whoever took it leaves it as ever."""
    life = in_state(before)
    life.end("close() was called")
    assert life.state is State.CLOSED
    assert not life.try_take(State.RUNNING)
    assert not life.take_last(0.0)
    life.leave(evicted=False)
    assert life.take_last(0.0)
    life.leave(evicted=False)
    with pytest.raises(ActorClosed):
        life.take(State.HELD)


def test_closing_waits_for_whoever_has_it() -> None:
    life = in_state(State.RUNNING)
    life.end("close() was called")
    results: list[bool] = []
    closer = started(lambda: results.append(life.take_last(PATIENCE_S)))
    time.sleep(0.01)
    assert closer.is_alive()
    life.leave(evicted=False)
    ended(closer)
    assert results == [True]


def test_two_that_close_it_take_turns() -> None:
    life = Life()
    life.end("close() was called")
    assert life.take_last(0.0)
    assert not life.take_last(0.0)
    life.leave(evicted=False)
    assert life.take_last(0.0)


def test_the_first_reason_counts() -> None:
    life = Life()
    life.end("first")
    life.end("second")
    assert life.closed_because == "first"
