"""Who goes first where more wait than fit."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from isthmus.actor.claimant import Claimant
from isthmus.actor.steps import JOB_S, Request, Steps
from isthmus.config import DeviceSettings
from isthmus.device import Device, open_device
from isthmus.metrics import Metrics
from isthmus.model.batch import Step
from isthmus.native.loader import open_library


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    device = open_device("null", open_library(None), DeviceSettings())
    yield device
    device.close()


def claimant(device: Device, weight: float = 1.0) -> Claimant:
    return Claimant(device, lambda: None, lambda: None, weight)


def steps_of(device: Device, most: int) -> Any:
    executor = SimpleNamespace(batch_key=lambda session: session, joins_sequences=False)
    metrics = Metrics()
    model: Any = SimpleNamespace(executor=executor)
    steps = Steps(model, device, metrics.of_model("m"), metrics)
    steps._most = most
    return steps


def taken(
    steps: Any,
    claimants: list[Claimant],
    n: int,
    keys: list[int] | None = None,
    sizes: list[int] | None = None,
) -> Counter:
    """How often each is chosen in `n` batches, if all of them always wait."""
    chosen: Counter[int] = Counter()
    for _ in range(n):
        for i, it in enumerate(claimants):
            if it not in {request.claimant for request in steps._waiting}:
                key: Any = keys[i] if keys else 0
                n_tokens = sizes[i] if sizes else 1
                steps._shares.enter(it)
                steps._waiting.append(Request(it, Step(key, [1] * n_tokens)))
        chosen.update(claimants.index(request.claimant) for request in steps._take())
    return chosen


def test_weights_are_shares(device: Device) -> None:
    claimants = [claimant(device, weight) for weight in (1, 1, 4)]
    chosen = taken(steps_of(device, 1), claimants, 120)
    assert [chosen[i] for i in range(3)] == pytest.approx([20, 20, 80], abs=2)


def test_nobody_starves(device: Device) -> None:
    claimants = [claimant(device) for _ in range(40)]
    chosen = taken(steps_of(device, 32), claimants, 50)
    assert min(chosen.values()) == max(chosen.values()) == 40


def test_who_was_away_gets_no_more_than_its_share(device: Device) -> None:
    steps = steps_of(device, 1)
    claimants = [claimant(device) for _ in range(2)]
    taken(steps, claimants, 1000)
    claimants.append(claimant(device))
    chosen = taken(steps, claimants, 90)
    assert chosen[2] == pytest.approx(30, abs=2)


def test_those_that_cannot_go_together_take_turns(device: Device) -> None:
    claimants = [claimant(device) for _ in range(4)]
    chosen = taken(steps_of(device, 32), claimants, 20, keys=[0, 0, 1, 1])
    assert min(chosen.values()) == max(chosen.values()) == 10


def waiting(device: Device) -> Any:
    """Steps of which one waits, which nobody computes."""
    steps = steps_of(device, 32)
    it = claimant(device)
    steps._shares.enter(it)
    steps._waiting.append(Request(it, Step(0, [1])))  # type: ignore[arg-type]
    steps._submit_if_due = lambda: None
    return steps


def test_several_prompts_come_before_a_step(device: Device) -> None:
    steps = waiting(device)
    assert steps._is_due()
    seconds = steps.hold(3)
    assert seconds == pytest.approx(3 * JOB_S)
    assert not steps._is_due()
    steps.let_go()
    assert not steps._is_due()  # the time is not over
    assert 0 < steps.hold(2) <= seconds  # the next prompt has what is left
    steps.let_go(early=True)
    assert steps._is_due()


def test_a_step_comes_before_the_next_prompts(device: Device) -> None:
    steps = waiting(device)
    steps.hold(4)
    steps.let_go(early=True)
    steps.hold(4)
    assert steps._is_due()  # no batch was computed since
    steps._served = True
    steps.hold(4)
    assert not steps._is_due()


def test_nobody_is_held_for_long(device: Device) -> None:
    assert waiting(device).hold(1000) <= 0.5


def test_the_next_batch_waits_for_whoever_has_its_prompt(device: Device) -> None:
    steps, newcomer = waiting(device), claimant(device)
    steps._patience_s = 20.0
    steps.expect(newcomer)
    assert not steps._is_due()
    steps.leave(newcomer)
    assert steps._is_due()


def test_a_batch_waits_from_the_last_one_who_came(device: Device) -> None:
    steps, (first, second) = steps_of(device, 8), (claimant(device), claimant(device))
    end = time.perf_counter() - 0.015
    steps._expect({first, second}, end - 0.04, end)
    request = Request(first, Step(Any, [1]))
    steps._enter(request)
    assert steps._wait_until == pytest.approx(request.since + 0.02)
    assert steps._missing == {second}
    steps._expect({first, second}, end - 10.04, end - 10.0)  # and not for ever
    steps._enter(Request(second, Step(Any, [1])))
    assert steps._wait_until < request.since
    steps.leave(first)


def test_steps_of_many_tokens_pay_for_them(device: Device) -> None:
    claimants = [claimant(device) for _ in range(3)]
    chosen = taken(steps_of(device, 8), claimants, 60, sizes=[8, 4, 1])
    assert chosen[0] * 8 == pytest.approx(chosen[1] * 4, abs=8)
    assert chosen[2] > chosen[1] > chosen[0]


def test_a_step_of_many_tokens_is_not_passed_over(device: Device) -> None:
    """Small ones that would fit beside each other do not keep it waiting for good."""
    claimants = [claimant(device) for _ in range(6)]
    chosen = taken(steps_of(device, 4), claimants, 60, sizes=[4, 1, 1, 1, 1, 1])
    assert chosen[0] > 0


def test_a_step_does_not_wait_for_prompts_without_end(device: Device) -> None:
    """Whoever has its prompt computed may be about to decode, or may never come."""
    steps = waiting(device)
    for _ in range(100):
        steps.expect(claimant(device))
    assert not steps._is_due()
    steps._waiting[0].since -= 1.0
    assert steps._is_due()


def test_nobody_spins_for_a_batch_that_outlasts_its_deadline(device: Device) -> None:
    """Only the batch can end what is in it: a deadline that has passed is not looked at."""
    late = Claimant(device, lambda: None, lambda: time.monotonic() - 1.0)
    start = time.monotonic()
    late.wait(0.05, whatever=True)
    assert time.monotonic() - start >= 0.04
    steps = steps_of(device, 8)
    steps._shares.enter(late)
    request = Request(late, Step(0, [1]))  # type: ignore[arg-type]
    steps._waiting.append(request)
    assert not request.taken
    steps._take()
    assert request.taken
