"""The lane of guests that compute for long: their turns, their pauses, how they leave it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from isthmus.actor import slow_lane
from isthmus.actor.message import Message
from isthmus.actor.shares import Share
from isthmus.actor.slow_lane import SlowLane, SlowTurn
from isthmus.errors import Overloaded
from isthmus.wasm import SLICE_OVER
from tests.patience import PATIENCE_S


class Lane:
    """A lane, and what came out of it."""

    def __init__(self, most: int = 1, decodes: Callable[[], bool] = lambda: False) -> None:
        self.lane = SlowLane(most, decodes)
        self.came: list[tuple[Message, Any, bool]] = []
        self.said: list[Message] = []
        self._changed = threading.Condition()

    def put(self, work: Coroutine[Any, Any, None], value: Any = None, error: Any = None) -> Message:
        message = Message(b"", "a guest", Share())
        message.work = work
        turn = SlowTurn(message, value, error, come_in=self._come_in, said=self.said.append)
        self.lane.put(turn)
        return message

    def wait_for(self, n: int) -> list[tuple[Message, Any, bool]]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.came) >= n, PATIENCE_S)
        return self.came

    def _come_in(self, message: Message, ask: Any, is_slow: bool) -> None:
        with self._changed:
            self.came.append((message, ask, is_slow))
            self._changed.notify_all()


class Asked:
    def __await__(self) -> Any:
        return (yield self)


async def slices(n: int, note: Callable[[], object] = lambda: None, then: Any = None) -> None:
    for _ in range(n):
        note()
        await SLICE_OVER
    note()
    if then is not None:
        await then


def begun(work: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None]:
    """A guest whose first slice is over, as the loop hands them in."""
    assert work.send(None) is SLICE_OVER
    return work


@pytest.mark.parametrize(("n", "is_slow"), [(1, False), (2, True), (5, True)])
def test_it_leaves_with_what_it_asks(n: int, *, is_slow: bool) -> None:
    """It comes back if it used up a slice here, too."""
    lane, asked = Lane(), Asked()
    message = lane.put(begun(slices(n, then=asked)))
    assert lane.wait_for(1) == [(message, asked, is_slow)]


def test_the_slice_counts_that_it_had_before() -> None:
    """Otherwise a guest that computes for a slice and a bit would have the loop for a slice at each
    of its tokens."""
    lane, asked, message = Lane(), Asked(), Message(b"", "a guest", Share())
    message.work = begun(slices(1, then=asked))
    how = {"come_in": lane._come_in, "said": lane.said.append}
    lane.lane.put(SlowTurn(message, None, None, n_slices=1, **how))
    assert lane.wait_for(1) == [(message, asked, True)]


def test_it_leaves_at_its_end() -> None:
    lane = Lane()
    message = lane.put(begun(slices(1)))
    assert lane.wait_for(1) == [(message, None, False)]


def test_what_it_raises_is_told() -> None:
    async def fails() -> None:
        raise ValueError("its own")

    lane = Lane()
    lane.put(fails())
    [(_, error, _)] = lane.wait_for(1)
    assert isinstance(error, ValueError)


def test_it_goes_on_with_the_answer_once() -> None:
    got: list[Any] = []

    async def work() -> None:
        got.append(await Asked())
        got.append(await SLICE_OVER)
        try:
            await Asked()
        except KeyError as error:
            got.append(error)

    lane, running = Lane(), work()
    running.send(None)
    lane.put(running, 5)
    lane.wait_for(1)
    error = KeyError("x")
    lane.put(running, None, error)
    lane.wait_for(2)
    assert got == [5, None, error]


def test_those_in_the_lane_take_turns() -> None:
    lane, order = Lane(), []
    free = threading.Event()

    async def first() -> None:
        free.wait(PATIENCE_S)

    lane.put(first())
    for name in "abc":
        lane.put(begun(slices(3, lambda name=name: order.append(name))))  # type: ignore[misc]
    order.clear()
    free.set()
    lane.wait_for(4)
    assert order == [*"abcabcabc"]


def test_several_at_once() -> None:
    lane, together = Lane(2), threading.Barrier(2)
    for _ in range(2):
        lane.put(begun(slices(1, lambda: together.n_waiting)))

    async def meet() -> None:
        together.wait(PATIENCE_S)

    for _ in range(2):
        lane.put(meet())
    assert [ask for _, ask, _ in lane.wait_for(4)] == [None] * 4


def test_what_it_says_is_told_at_the_end_of_each_slice() -> None:
    async def talks() -> None:
        for _ in range(3):
            message.pieces.append("x")
            await SLICE_OVER

    lane = Lane()
    message = Message(b"", "a guest", Share())
    message.work = talks()
    lane.lane.put(SlowTurn(message, None, None, come_in=lane._come_in, said=lane.said.append))
    lane.wait_for(1)
    assert lane.said == [message] * 3


@pytest.mark.parametrize("decodes", [False, True])
def test_it_pauses_while_others_decode(monkeypatch: pytest.MonkeyPatch, *, decodes: bool) -> None:
    """All together get a quarter of one processor: a thread of four pauses 15 times as long."""
    pauses: list[float] = []
    monkeypatch.setattr(slow_lane, "time", FakeTime(pauses))
    lane = Lane(4, lambda: decodes)
    lane.put(slices(3))
    lane.wait_for(1)
    assert pauses == ([15.0] * 3 if decodes else [])


class FakeTime:
    """A clock on which each slice takes a second."""

    def __init__(self, pauses: list[float]) -> None:
        self._pauses = pauses
        self._now = 0.0

    def monotonic(self) -> float:
        self._now += 1.0
        return self._now

    def sleep(self, seconds: float) -> None:
        self._pauses.append(seconds)


def test_one_that_finds_no_thread_is_not_driven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even once there is one for the next."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    lane, driven = Lane(), []

    async def work(name: str) -> None:
        driven.append(name)

    refused, other = work("refused"), work("other")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(Overloaded, match="can't start"):
            lane.put(refused)
    lane.put(other)
    lane.wait_for(1)
    time.sleep(0.005)
    assert driven == ["other"]
    refused.close()
