"""Workers of a device sleep at barriers while others want their processors, and spin otherwise."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from isthmus.device.barriers import Barriers, ProcessorTimes
from isthmus.runtime import Runtime
from tests.tiny_gguf import TinyLlama

MS = 1_000_000


class Switch:
    """What has workers sleep, and counts."""

    def __init__(self) -> None:
        self.slept = self.woken = 0

    def __call__(self) -> Callable[[], None]:
        self.slept += 1
        return self._wake

    def _wake(self) -> None:
        self.woken += 1


def test_a_thread_that_always_runs_spins() -> None:
    switch = Switch()
    barriers = Barriers(switch)
    for i in range(100):
        barriers.note(10 * MS * i, 10 * MS, 10 * MS - 1000)
    assert not barriers.sleeping
    assert switch.slept == 0


def test_a_thread_without_a_processor_sleeps_until_processors_are_idle() -> None:
    switch, shares = Switch(), iter([0.5, 0.0, 0.02, 0.3])
    barriers = Barriers(switch, lambda: next(shares))
    now = 0
    for _ in range(10):
        now += 10 * MS
        barriers.note(now, 10 * MS, 5 * MS)
    assert barriers.sleeping
    assert (switch.slept, switch.woken) == (1, 0)
    for _ in range(2):  # it slept, which says nothing of others; nothing was idle, which does
        now += 4000 * MS
        barriers.note(now, MS, 0)
        assert barriers.sleeping
    barriers.note(now + 1000 * MS, MS, 0)  # too soon to ask again
    assert barriers.sleeping
    barriers.note(now + 4000 * MS, MS, 0)
    assert not barriers.sleeping
    assert (switch.slept, switch.woken) == (1, 1)


def test_the_share_of_time_that_processors_were_idle(tmp_path: Path) -> None:
    file, mine = tmp_path / "stat", min(os.sched_getaffinity(0))
    times = ProcessorTimes(file)
    assert times.idle() == 1.0  # where the system does not say

    def tell(*mine_: int) -> float:
        counts = " ".join(map(str, mine_))
        file.write_text(f"cpu  9 9 9 9 9 9 9 9 0 0\ncpu{mine} {counts} 0 0\ncpu9999 5 5 5 5\n")
        return times.idle()

    tell(100, 0, 50, 800, 10, 0, 0, 0)
    assert tell(160, 5, 60, 820, 15, 0, 0, 0) == 0.25
    assert tell(260, 5, 60, 820, 15, 0, 0, 0) == 0.0
    assert tell(260, 5, 60, 820, 15, 0, 0, 0) == 1.0  # no time has passed


def test_closed_barriers_spin() -> None:
    switch = Switch()
    barriers = Barriers(switch)
    barriers.note(0, 100 * MS, 0)
    barriers.close()
    barriers.close()
    assert (switch.slept, switch.woken) == (1, 1)


def spin() -> None:
    while True:
        pass


@contextmanager
def hogs(n: int) -> Iterator[None]:
    """Processes that want a processor each."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=spin, daemon=True) for _ in range(n)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def test_others_make_workers_sleep_and_change_no_bit(tmp_path: Path) -> None:
    path = TinyLlama(with_tokenizer=True).write(tmp_path / "tiny.gguf")
    with Runtime(device="cpu", threads=2) as runtime:
        barriers = runtime.device.barriers
        if runtime.device.library.hold_team is None:
            pytest.skip("the library's runtime is not GNU's")
        model = runtime.load_model(path)
        args = {"max_tokens": 8, "temperature": 0}
        models = {"default": model}
        with runtime.spawn("chat", models=models, args=args) as actor:
            alone = actor.send("x").data
        with hogs(4):
            end = time.monotonic() + 60
            while not barriers.sleeping and time.monotonic() < end:
                with runtime.spawn("chat", models=models, args=args) as actor:
                    assert actor.send("x").data == alone
            assert barriers.sleeping
            with runtime.spawn("chat", models=models, args=args) as actor:
                assert actor.send("x").data == alone
