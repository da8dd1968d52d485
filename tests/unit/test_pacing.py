"""Who pauses, and for how long, by a clock that the tests move."""

from __future__ import annotations

import pytest

from isthmus.actor import pacing
from isthmus.actor.pacing import Pace, Pacer


class World:
    """A clock, the tokens that others ask for, and the pauses that were taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.time = self.cpu = 0.0
        self.n_asked = 0
        self.pauses: list[float] = []
        monkeypatch.setattr(pacing.time, "sleep", self.pauses.append)
        self.pacer = Pacer(lambda: self.n_asked, lambda: self.time, lambda: self.cpu)

    def run(self, *paces: Pace, ticks: int, asked: bool, cpu_s: float = 0.01) -> list[float]:
        """So many ticks of each message; returns the pauses."""
        self.pauses.clear()
        for _ in range(ticks):
            self.n_asked += asked
            for pace in paces:
                pace.tick()
            self.time += 0.01
            self.cpu += cpu_s
        return self.pauses


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_nobody_pauses_while_nobody_decodes(world: World) -> None:
    assert world.run(Pace(world.pacer, lambda: 0), ticks=100, asked=False) == []


def test_a_loop_beside_others_pauses_after_its_allowance(world: World) -> None:
    pauses = world.run(Pace(world.pacer, lambda: 0), ticks=100, asked=True)
    assert 90 < len(pauses) < 100
    assert set(pauses) == {0.03}


def test_whoever_waits_uses_up_nothing(world: World) -> None:
    assert world.run(Pace(world.pacer, lambda: 0), ticks=100, asked=True, cpu_s=0.0004) == []


def test_each_token_brings_a_new_allowance(world: World) -> None:
    tokens = iter(range(10**6))
    pace = Pace(world.pacer, lambda: next(tokens) // 4)
    assert world.run(pace, ticks=100, asked=True) == []


def test_several_share_what_one_may_use(world: World) -> None:
    paces = [Pace(world.pacer, lambda: 0) for _ in range(5)]
    pauses = world.run(*paces, ticks=100, asked=True)
    assert pauses[-1] == pytest.approx(0.15)
    for pace in paces[1:]:
        pace.end()
    world.time += 1
    assert world.run(paces[0], ticks=10, asked=True)[-1] == pytest.approx(0.03)


def test_no_pause_puts_off_a_deadline_for_long(world: World) -> None:
    paces = [Pace(world.pacer, lambda: 0) for _ in range(100)]
    assert max(world.run(*paces, ticks=20, asked=True)) == 0.5


def test_a_message_begins_with_an_allowance(world: World) -> None:
    pace = Pace(world.pacer, lambda: 0)
    assert world.run(pace, ticks=20, asked=True)
    pace.end()
    pace.begin()
    assert world.run(pace, ticks=4, asked=True) == []
