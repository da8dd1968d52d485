"""Guests that are resumed side by side: in order, without waiting for one another for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from isthmus.actor import crew as crew_module
from isthmus.actor.crew import Crew
from isthmus.device.compute_thread import ComputeThread
from tests.patience import PATIENCE_S

N = 40


class Guest:
    """Something that is resumed: does `work`, and asks for its number."""

    def __init__(self, number: int, work: Callable[[], object] = lambda: None) -> None:
        self.number = number
        self._work = work
        self.thread = 0

    def resume(self, value: object, error: object) -> tuple[int, object]:
        self._work()
        self.thread = threading.get_ident()
        return self.number, value


@pytest.fixture
def thread() -> Iterator[ComputeThread]:
    thread = ComputeThread("test")
    yield thread
    thread.close()


@pytest.fixture
def crew(thread: ComputeThread, monkeypatch: pytest.MonkeyPatch) -> Crew:
    monkeypatch.setattr(crew_module, "_MAX", 3)
    return Crew(thread)


def resumed(crew: Crew, thread: ComputeThread, guests: list[Guest]) -> list[Any]:
    resumptions: Any = [(guest, f"answer {guest.number}", None) for guest in guests]
    return thread.run(lambda: crew.resume(resumptions))


def expected(n: int = N) -> list[tuple[int, str]]:
    return [(i, f"answer {i}") for i in range(n)]


def rest() -> None:
    time.sleep(0.001)


def test_asks_are_in_the_order_of_guests(crew: Crew, thread: ComputeThread) -> None:
    for _ in range(3):
        guests = [Guest(i, rest) for i in range(N)]
        assert resumed(crew, thread, guests) == expected()
    assert len({guest.thread for guest in guests}) > 1


def test_a_few_and_quick_ones_are_resumed_by_the_loop_alone(
    crew: Crew, thread: ComputeThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [Guest(i, rest) for i in range(3)]
    assert resumed(crew, thread, few) == expected(3)
    monkeypatch.setattr(crew_module, "_SHORT_S", 1.0)
    quick = [Guest(i) for i in range(N)]
    for _ in range(5):
        assert resumed(crew, thread, quick) == expected()
    assert len({guest.thread for guest in (*few, *quick)}) == 1


def test_whoever_helps_may_have_jobs_for_the_loops_thread(
    crew: Crew, thread: ComputeThread
) -> None:
    """Which waits for the helper at that moment."""

    def work() -> None:
        rest()
        assert thread.run(lambda: 7) == 7

    done = threading.Event()

    def run() -> None:
        for _ in range(5):
            guests = [Guest(i, work) for i in range(N)]
            assert resumed(crew, thread, guests) == expected()
        done.set()

    threading.Thread(target=run, daemon=True).start()
    assert done.wait(PATIENCE_S)


def test_the_way_that_takes_less_time_is_found(
    crew: Crew, thread: ComputeThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Side by side is slower here: guests take turns by a lock, and whoever helps waits longer."""
    loop, lock = thread.run(threading.get_ident), threading.Lock()

    def work() -> None:
        with lock:
            time.sleep(0.0005 if threading.get_ident() == loop else 0.004)

    for _ in range(12):
        resumed(crew, thread, [Guest(i, work) for i in range(8)])
    guests = [Guest(i, work) for i in range(8)]
    resumed(crew, thread, guests)
    assert {guest.thread for guest in guests} == {loop}


def test_without_a_thread_to_be_had_the_loop_resumes_all(
    crew: Crew, thread: ComputeThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread.run(lambda: None)

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for _ in range(3):
        assert resumed(crew, thread, [Guest(i, rest) for i in range(N)]) == expected()


def test_what_guests_did_long_ago_is_forgotten(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of its own: guests that computed for long compute little from now on."""
    now, turn_s, helped = 0.0, {False: 1.0, True: 0.3}, []

    def passes(way: bool) -> None:
        nonlocal now
        now += turn_s[way]

    def together(answers: Any) -> list[Any]:
        helped.append(True)
        return [passes(True) for _ in answers]

    monkeypatch.setattr(crew_module, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(crew, "_resume_together", together)
    guests: Any = [(Guest(i, lambda: passes(False)), None, None) for i in range(8)]
    for _ in range(20):
        crew.resume(guests)
    assert len(helped) > 10
    turn_s[False] = 0.1
    for _ in range(crew_module._ROUNDS):
        crew.resume(guests)
    helped.clear()
    crew.resume(guests)
    assert not helped
