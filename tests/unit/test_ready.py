"""Who goes on first: guests that compute for long keep nobody waiting."""

from __future__ import annotations

import pytest

from isthmus.actor import ready
from isthmus.actor.ask import Answer
from isthmus.actor.message import Message
from isthmus.actor.ready import Ready
from isthmus.actor.shares import Share


class Driver:
    """Messages that take the seconds that their names say, by a clock of their own.

    After an @ the name has the seconds of them in which the thread had no processor.
    """

    def __init__(self) -> None:
        self.now = self.without_processor = 0.0
        self.others_ask = True
        self.n_together = 0
        self.went_on: list[str] = []
        self.ready = Ready(self._advance, lambda: self.others_ask)
        self._messages: dict[str, Message] = {}

    def monotonic(self) -> float:
        return self.now

    def thread_time(self) -> float:
        return self.now - self.without_processor

    def _advance(self, answers: list[Answer]) -> None:
        self.n_together = len(answers)
        for message, _value, _error in answers:
            self.went_on.append(message.guest)
            seconds, _, without = message.guest.partition(" ")[0].partition("@")
            self.now += float(seconds)
            self.without_processor += float(without or 0)

    def turn(self, *names: str) -> list[str]:
        """Has messages go on, and says which of all that wait did."""
        for name in names:
            message = self._messages.setdefault(name, Message(b"", name, Share()))
            self.ready.append(Answer(message))
        self.went_on = []
        self.ready.resume()
        return self.went_on


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    monkeypatch.setattr(ready, "time", driver)
    return driver


LIGHT = [f"0.00001 {n}" for n in range(8)]
HEAVY = [f"0.005 {n}" for n in range(8)]


def test_all_go_on_in_order(driver: Driver) -> None:
    assert driver.turn(*LIGHT) == LIGHT
    assert not driver.ready
    assert driver.turn() == []


def test_heavy_ones_go_on_a_few_at_a_time(driver: Driver) -> None:
    mixed = [name for pair in zip(HEAVY, LIGHT, strict=True) for name in pair]
    assert driver.turn(*mixed) == mixed
    driver.turn(*mixed)  # each is timed now
    assert driver.turn(*mixed) == [*LIGHT, *HEAVY[:2]]
    assert driver.turn(*LIGHT) == [*LIGHT, *HEAVY[2:4]]
    assert driver.ready
    while driver.ready:
        before = driver.went_on[-1]
        assert driver.turn(*LIGHT)[-1] != before  # none of them starves


def test_heavy_ones_wait_for_nobody_if_no_other_asks(driver: Driver) -> None:
    driver.others_ask = False
    for _ in range(4):
        assert sorted(driver.turn(*HEAVY)) == HEAVY
        assert not driver.ready
    assert driver.n_together == len(HEAVY)


def test_many_quick_ones_go_on_together_but_for_once(driver: Driver) -> None:
    """They take long all the same; but one by one nobody could help."""
    quick = [f"0.0002 {n}" for n in range(64)]
    together = [driver.n_together for _ in range(20) if driver.turn(*quick)]
    assert together == [64, 1, *[64] * 18]


def test_one_that_computes_no_longer_is_light_again(driver: Driver) -> None:
    message = Message(b"", "0.02", Share())
    for guest, is_heavy in (("0.02", False), ("0.02", True), ("0.00001", False)):
        message.guest = guest
        driver.ready.append(Answer(message))
        driver.ready.resume()
        assert message.is_heavy is is_heavy


def test_one_whose_thread_had_no_processor_stays_light(driver: Driver) -> None:
    """On a busy machine nearly every guest takes milliseconds."""
    waiting = [f"0.005@0.0049 {n}" for n in range(8)]
    for _ in range(3):
        assert driver.turn(*waiting, *LIGHT) == [*waiting, *LIGHT]
