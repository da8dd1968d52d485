"""How many messages run at the same time, and who waits for a place."""

from __future__ import annotations

from typing import Any

import pytest

from isthmus.actor.message import Message
from isthmus.actor.places import Places
from isthmus.actor.shares import Share
from isthmus.config import Capacity
from isthmus.errors import Overloaded


class Door:
    """Places, and why messages were refused."""

    def __init__(self, running: int, waiting: int = 100) -> None:
        self.refused: list[str] = []
        self.places = Places(Capacity(running=running, waiting=waiting), self.refused.append)

    def enter(self, n: int = 1, *, receive: bool = True) -> list[Message]:
        messages = [Message(b"", "a guest", Share()) for _ in range(n)]
        for message in messages:
            self.places.enter(message)
        if receive:
            for message in messages:
                self.places.receive(message)
        return messages

    @property
    def numbers(self) -> tuple[int, int]:
        return self.places.n_running, self.places.n_waiting

    def begun(self) -> list[Message]:
        """Those that have got a place since this was asked last."""
        fresh = [*self.places.fresh]
        self.places.fresh.clear()
        return fresh


@pytest.mark.parametrize(
    ("n", "running", "numbers"), [(0, 2, (0, 0)), (1, 2, (1, 0)), (2, 2, (2, 0)), (5, 2, (2, 3))]
)
def test_so_many_have_a_place(n: int, running: int, numbers: tuple[int, int]) -> None:
    door = Door(running)
    messages = door.enter(n)
    assert door.numbers == numbers
    assert door.begun() == messages[:running]
    assert [it.has_place for it in messages] == [i < running for i in range(n)]


def test_a_place_goes_to_the_first_in_the_line() -> None:
    door = Door(1)
    messages = door.enter(3)
    assert door.begun() == messages[:1]
    for i in (1, 2):
        door.places.give_up()
        assert door.begun() == [messages[i]]
        assert messages[i].has_place
    door.places.give_up()
    assert door.begun() == []
    assert door.numbers == (0, 0)


def test_those_that_are_too_many_are_refused() -> None:
    door = Door(2, waiting=1)
    door.enter(3)
    with pytest.raises(Overloaded, match="2 messages are being handled and 1 wait"):
        door.enter()
    assert door.refused == ["waiting"]
    assert door.numbers == (2, 1)


def test_a_place_that_is_free_before_the_one_that_waits_is_received() -> None:
    door = Door(1)
    [first] = door.enter()
    [second] = door.enter(receive=False)
    assert door.begun() == [first]
    door.places.give_up()
    assert door.numbers == (0, 1)
    door.places.receive(second)
    assert door.begun() == [second]
    assert door.numbers == (1, 0)


def test_one_that_comes_back_from_a_tool_does_not_wait() -> None:
    door = Door(1)
    first, second, third = door.enter(3)
    door.places.give_up()  # the first one is in a tool
    door.places.take_again()
    assert door.begun() == [first, second]
    assert door.numbers == (2, 1)
    door.places.give_up()
    assert door.begun() == []  # one too many ran
    door.places.give_up()
    assert door.begun() == [third]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_one_that_leaves_the_line(which: int) -> None:
    door = Door(1)
    running, *waiting = door.enter(4)
    gone = waiting.pop(which)
    door.places.withdraw(gone)
    assert door.numbers == (1, 2)
    assert not gone.has_place
    for it in waiting:
        door.places.give_up()
        assert door.begun()[-1] is it
    assert running.has_place


def test_one_that_has_a_place_does_not_leave_the_line() -> None:
    door = Door(1)
    running: Any = door.enter()[0]
    door.places.withdraw(running)
    assert door.numbers == (1, 0)


def test_one_that_could_not_be_handed_over_is_not_counted() -> None:
    door = Door(1)
    running, waiting = door.enter(2, receive=False)
    for it in (waiting, running, waiting, running):
        door.places.leave(it)
    assert door.numbers == (0, 0)
    assert not running.has_place
