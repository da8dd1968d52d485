"""Which prompts are computed together, and what becomes of the others where one fails or leaves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from isthmus.actor.claimant import Claimant
from isthmus.actor.steps import Steps
from isthmus.actor.turns import Turns
from isthmus.config import DeviceSettings
from isthmus.device import Device, open_device
from isthmus.errors import Cancelled, DeviceFailed, ModelUnsupported
from isthmus.metrics import Metrics
from isthmus.model.pack_probe import MOST
from isthmus.model.parts import Chunk, Job
from isthmus.native.loader import open_library

PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    device = open_device("null", open_library(None), DeviceSettings())
    yield device
    device.close()


class Crowd:
    """Prompts of a model that computes nothing, but notes in `passes` which it computed together.

    `add` has one come. All wait until `go` is called, behind one that is not noted.
    """

    def __init__(self, device: Device, *, packs: bool = True) -> None:
        self._device = device
        self.metrics = Metrics()
        self.passes: list[str] = []
        self.errors: dict[str, BaseException] = {}
        self.unwanted: set[str] = set()
        self.claimants: dict[str, Claimant] = {}
        self.threads: dict[str, threading.Thread] = {}
        self.during: Callable[[str], None] = lambda names: None
        """Called in each pass."""
        executor = SimpleNamespace(
            batch_key=lambda session: session.key, append=self._append, joins_sequences=False
        )
        model: Any = SimpleNamespace(packs=packs, executor=executor)
        of_model = self.metrics.of_model("m")
        self.turns = Turns(
            model, of_model, self.metrics, Steps(model, device, of_model, self.metrics)
        )
        self._free, began = threading.Event(), threading.Event()

        def first(_job: Job) -> None:
            began.set()
            self._free.wait(PATIENCE_S)

        self._start("", lambda claimant: self.turns.run(claimant, 10, first))
        assert began.wait(PATIENCE_S)

    def add(self, name: str, n_tokens: int, *, key: int = 0, packable: bool = True) -> None:
        session: Any = SimpleNamespace(name=name, key=key)
        chunk = Chunk(session, np.zeros(n_tokens, np.int32), last=True)

        def work(claimant: Claimant) -> None:
            def alone(job: Job) -> None:
                self._append([chunk], claimant.check, job)

            self.turns.run(claimant, n_tokens, alone, chunk if packable else None)

        n_before = len(self.turns._waiting)
        self._start(name, work)
        wait_until(lambda: len(self.turns._waiting) > n_before)

    def leave(self, name: str) -> None:
        self.unwanted.add(name)
        self.claimants[name].interrupt()

    def go(self) -> list[str]:
        self._free.set()
        for thread in self.threads.values():
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        assert not self.turns._waiting
        assert not self.turns._pass
        return self.passes

    def used(self, name: str) -> float:
        return self.turns._shares.used(self.claimants[name])

    def _start(self, name: str, work: Callable[[Claimant], None]) -> None:
        def check() -> None:
            if name in self.unwanted:
                raise Cancelled(name)

        claimant = self.claimants[name] = Claimant(self._device, check, lambda: None)

        def run() -> None:
            try:
                work(claimant)
            except BaseException as error:
                self.errors[name] = error

        self.threads[name] = threading.Thread(target=run)
        self.threads[name].start()

    def _append(self, chunks: Sequence[Any], check: Callable[[], None], job: Job) -> None:
        names = "".join(chunk.session.name for chunk in chunks)
        with job():
            self.during(names)
        check()
        self.passes.append(names)


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_those_that_wait_are_one_pass(device: Device) -> None:
    crowd = Crowd(device)
    for name in "abcd":
        crowd.add(name, 47)
    assert crowd.go() == ["abcd"]
    assert not crowd.errors
    assert {crowd.used(name) for name in "abcd"} == {47.0}


def test_no_more_than_fit(device: Device) -> None:
    crowd = Crowd(device)
    for name in "abcde":
        crowd.add(name, MOST // 2 - 10)
    assert crowd.go() == ["ab", "cd", "e"]


def test_a_long_prompt_goes_alone_and_is_not_passed_over(device: Device) -> None:
    crowd = Crowd(device)
    crowd.add("a", 20)
    crowd.add("L", MOST + 1)
    crowd.add("b", 20)
    crowd.add("c", 20)
    assert crowd.go() == ["abc", "L"]
    crowd = Crowd(device)
    crowd.add("L", MOST - 20)
    crowd.add("M", MOST - 20)
    crowd.add("a", 20)
    crowd.add("b", 20)
    assert crowd.go() == ["La", "Mb"]


def test_those_of_another_kind_are_another_pass(device: Device) -> None:
    crowd = Crowd(device)
    for name, key in (("a", 0), ("b", 1), ("c", 0), ("d", 1)):
        crowd.add(name, 20, key=key)
    crowd.add("e", 20, packable=False)
    assert crowd.go() == ["ac", "bd", "e"]


def test_each_alone_where_bits_would_change(device: Device) -> None:
    crowd = Crowd(device, packs=False)
    for name in "abc":
        crowd.add(name, 20)
    assert crowd.go() == ["a", "b", "c"]


def test_a_device_that_fails_is_asked_for_each_one(device: Device) -> None:
    def refuse(names: str) -> None:
        if "b" in names:
            raise DeviceFailed("poisoned")

    crowd = Crowd(device)
    crowd.during = refuse
    for name in "abc":
        crowd.add(name, 20)
    assert crowd.go() == ["a", "c"]
    assert {name: type(error) for name, error in crowd.errors.items()} == {"b": DeviceFailed}
    assert "isthmus_batches_retried_total 1.0" in crowd.metrics.render()


def test_a_device_without_the_kernels_is_asked_once(device: Device) -> None:
    asked: list[str] = []

    def refuse(names: str) -> None:
        asked.append(names)
        if len(names) > 1:
            raise ModelUnsupported("no kernel")

    crowd = Crowd(device)
    crowd.during = refuse
    for name in "abcdef":
        crowd.add(name, MOST // 3)
    assert sorted(crowd.go()) == [*"abcdef"]
    assert len(asked) == 7  # "abc" once, and each
    assert not crowd.errors


def test_who_leaves_stays_while_its_memory_is_written(device: Device) -> None:
    """The pass is given up, once, and the others are computed by themselves."""
    inside, left = threading.Event(), threading.Event()

    def during(names: str) -> None:
        if names == "abc":
            inside.set()
            left.wait(PATIENCE_S)

    crowd = Crowd(device)
    crowd.during = during
    for name in "abc":
        crowd.add(name, 20)
    crowd._free.set()
    assert inside.wait(PATIENCE_S)
    crowd.leave("b")
    wait_until(lambda: any(it.unwanted for it in crowd.turns._pass))
    assert crowd.threads["b"].is_alive()
    left.set()
    assert crowd.go() == ["a", "c"]
    assert {name: type(error) for name, error in crowd.errors.items()} == {"b": Cancelled}
    assert crowd.used("a") == crowd.used("c") == 20.0
    assert crowd.used("b") == 60.0  # it pays for all that was in vain


def test_the_one_that_computes_may_end_as_well(device: Device) -> None:
    crowd = Crowd(device)
    crowd.during = lambda names: crowd.leave("a") if names == "abc" else None
    for name in "abc":
        crowd.add(name, 20)
    assert crowd.go() == ["b", "c"]
    assert {name: type(error) for name, error in crowd.errors.items()} == {"a": Cancelled}


def test_who_leaves_before_its_turn_is_not_computed(device: Device) -> None:
    crowd = Crowd(device)
    for name in "abc":
        crowd.add(name, 20)
    crowd.leave("a")
    crowd.threads["a"].join(PATIENCE_S)
    assert crowd.go() == ["bc"]
