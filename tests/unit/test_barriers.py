"""Workers of a device sleep at barriers while others want their processors, and spin otherwise."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from isthmus.device.barriers import Barriers
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


def test_a_thread_without_a_processor_sleeps_and_then_tries_again() -> None:
    switch = Switch()
    barriers = Barriers(switch)
    now = 0
    for _ in range(10):
        now += 10 * MS
        barriers.note(now, 10 * MS, 5 * MS)
    assert barriers.sleeping
    assert (switch.slept, switch.woken) == (1, 0)
    barriers.note(now + 10_000 * MS, MS, 0)  # it slept, which says nothing of others
    assert not barriers.sleeping
    assert (switch.slept, switch.woken) == (1, 1)


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
