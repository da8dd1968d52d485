"""Threads for what may take long."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable

import pytest

from isthmus.actor import pool
from isthmus.actor.pool import Pool
from isthmus.errors import Overloaded
from tests.patience import PATIENCE_S


@pytest.fixture(autouse=True)
def _soon_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of these pools end soon after their last work."""
    monkeypatch.setattr(pool, "_IDLE_S", 0.05)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name that no other test's threads have."""
    return str(request.node.nodeid)


def threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


class Held:
    """Work that runs until it is let go."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.running = 0
        self.most = 0
        self.done = 0
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        self.free.wait(PATIENCE_S)
        with self._lock:
            self.running -= 1
            self.done += 1


def test_no_work_no_thread(name: str) -> None:
    Pool(name)
    assert threads(name) == []


def test_a_free_thread_is_used_again(name: str) -> None:
    it, idents = Pool(name), set()
    for _ in range(20):
        done = threading.Event()

        def work(done: threading.Event = done) -> None:
            idents.add(threading.get_ident())
            done.set()

        it.submit(work)
        assert done.wait(PATIENCE_S)
        wait_until(lambda: it._n_free == 1)
    assert len(idents) == 1


def test_as_many_threads_as_are_wanted(name: str) -> None:
    it, held = Pool(name), Held()
    for _ in range(20):
        it.submit(held)
    wait_until(lambda: held.running == 20)
    held.free.set()
    wait_until(lambda: held.done == 20)


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_threads_than_are_allowed(name: str, most: int) -> None:
    it, held = Pool(name, most), Held()
    for _ in range(20):
        it.submit(held)
    wait_until(lambda: held.running == most)
    assert len(threads(name)) == most
    held.free.set()
    wait_until(lambda: held.done == 20)
    assert held.most == most


def test_work_is_done_in_the_order_in_which_it_came(name: str) -> None:
    it, held, done = Pool(name, 1), Held(), []
    it.submit(held)
    for number in range(10):
        it.submit(lambda number=number: done.append(number))  # type: ignore[misc]
    held.free.set()
    wait_until(lambda: len(done) == 10)
    assert done == list(range(10))


@pytest.mark.parametrize("n", [1, 3])
def test_what_work_needed_is_freed_once_it_is_done(name: str, n: int) -> None:
    """And not only when its thread has other work: it may be a gigabyte of an agent's memory."""
    it, held, freed = Pool(name, 1), Held(), []

    class Large:
        def __call__(self) -> None:
            held()

    for _ in range(n):
        large = Large()
        weakref.finalize(large, freed.append, True)
        it.submit(large)
    del large
    held.free.set()
    wait_until(lambda: len(freed) == n)
    assert len(threads(name)) == 1


def test_idle_threads_end_and_new_ones_come(name: str) -> None:
    it = Pool(name)
    for _ in range(2):
        held = Held()
        for _ in range(3):
            it.submit(held)
        held.free.set()
        wait_until(lambda held=held: held.done == 3 and not threads(name))  # type: ignore[misc]
    assert (it._n_threads, it._n_free) == (0, 0)


def test_no_work_is_lost_to_a_thread_that_ends(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads end all the time here, and work comes all the time."""
    monkeypatch.setattr(pool, "_IDLE_S", 0.001)
    it, lock, done = Pool(name, 2), threading.Lock(), 0

    def work() -> None:
        nonlocal done
        with lock:
            done += 1

    for number in range(500):
        it.submit(work)
        if number % 7 == 0:
            time.sleep(0.0002)
    wait_until(lambda: done == 500)
    wait_until(lambda: it._n_threads == it._n_free)  # all that are left are idle


def test_no_thread_to_be_had(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    it, held = Pool(name, 2), Held()
    it.submit(held)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(Overloaded, match="can't start new thread"):
            it.submit(held)
    it.submit(held)
    wait_until(lambda: held.running == 2)
    held.free.set()
    wait_until(lambda: held.done == 2)
    wait_until(lambda: not threads(name))
    assert held.done == 2  # what was refused is not done later


def test_an_idle_thread_keeps_nothing_of_what_it_did(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor of the work that it was started for."""

    class Work:
        def __call__(self) -> None:
            pass

    monkeypatch.setattr(pool, "_IDLE_S", 60.0)
    it = Pool(name, 1)
    for _ in range(2):
        work = Work()
        kept = weakref.ref(work)
        it.submit(work)
        del work
        wait_until(lambda kept=kept: kept() is None)  # type: ignore[misc]
    assert len(threads(name)) == 1
    monkeypatch.undo()
    it.submit(lambda: None)
