"""The thread on which a device computes."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from isthmus.device.compute_thread import ComputeThread
from isthmus.errors import DeviceFailed
from tests.patience import PATIENCE_S


@pytest.fixture
def compute() -> Iterator[ComputeThread]:
    thread = ComputeThread("a test's device")
    yield thread
    thread.close()


def test_it_starts_with_the_first_job() -> None:
    def is_there() -> bool:
        return "a test's own device" in [it.name for it in threading.enumerate()]

    compute = ComputeThread("a test's own device")
    assert not is_there()
    assert compute.run(lambda: threading.current_thread().name) == "a test's own device"
    assert is_there()
    compute.close()
    assert not is_there()


def test_jobs_run_one_at_a_time_in_the_order_in_which_they_came(compute: ComputeThread) -> None:
    free, done = threading.Event(), []
    compute.post(lambda: done.append(free.wait(PATIENCE_S)))
    for number in range(100):
        compute.post(lambda number=number: done.append(number))  # type: ignore[misc]
    free.set()
    assert compute.run(lambda: done == [True, *range(100)])


def test_whoever_waits_gets_what_the_job_gives(compute: ComputeThread) -> None:
    def fails() -> int:
        raise ValueError("its own")

    assert compute.run(lambda: 5) == 5
    with pytest.raises(ValueError, match="its own"):
        compute.run(fails)
    assert compute.run(lambda: 6) == 6


def test_many_threads_run_jobs(compute: ComputeThread) -> None:
    got: list[int] = []

    def work(number: int) -> None:
        for i in range(20):
            got.append(compute.run(lambda i=i: 100 * number + i))  # type: ignore[misc]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(got) == [100 * number + i for number in range(8) for i in range(20)]


def test_a_job_may_run_others(compute: ComputeThread) -> None:
    order = []

    def outer() -> int:
        compute.post(lambda: order.append("posted"))
        order.append("outer")
        return 1 + compute.run(inner)

    def inner() -> int:
        assert compute.is_current
        order.append("inner")
        return 1

    assert compute.run(outer) == 2
    assert compute.run(lambda: list(order)) == ["outer", "inner", "posted"]


def test_who_is_on_it(compute: ComputeThread) -> None:
    assert not compute.is_current
    assert compute.run(lambda: compute.is_current)
    assert not compute.is_current


@pytest.mark.parametrize("kind", [RuntimeError, SystemExit, KeyboardInterrupt])
def test_it_survives_a_job_that_raises(
    compute: ComputeThread, kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> None:
        raise kind("nobody waits")

    with caplog.at_level(logging.ERROR, "isthmus"):
        compute.post(fails)
        assert compute.run(lambda: 5) == 5
    assert "goes on after an error" in caplog.text


def test_it_keeps_nothing_of_a_job_that_is_done(compute: ComputeThread) -> None:
    class Result:
        pass

    kept = weakref.ref(compute.run(Result))
    end = time.monotonic() + PATIENCE_S
    while kept() is not None:
        assert time.monotonic() < end
        time.sleep(0.001)


# ---------------------------------------------------------------------------------- alarms


def test_an_alarm_rings_once(compute: ComputeThread) -> None:
    rung: list[float] = []
    rang = threading.Event()

    def ring() -> None:
        rung.append(time.monotonic())
        rang.set()

    at = time.monotonic() + 0.02
    compute.run(lambda: compute.set_alarm(at, ring))
    assert rang.wait(PATIENCE_S)
    compute.run(lambda: None)
    time.sleep(0.02)
    assert len(rung) == 1
    assert rung[0] >= at


def test_an_alarm_takes_the_place_of_the_one_before(compute: ComputeThread) -> None:
    rung: list[str] = []
    rang = threading.Event()

    def set_both() -> None:
        compute.set_alarm(time.monotonic(), lambda: rung.append("first"))
        compute.set_alarm(time.monotonic(), lambda: (rung.append("second"), rang.set())[0])

    compute.run(set_both)
    assert rang.wait(PATIENCE_S)
    assert rung == ["second"]


def test_no_alarm(compute: ComputeThread) -> None:
    rung: list[str] = []

    def set_none() -> None:
        compute.set_alarm(time.monotonic(), lambda: rung.append("first"))
        compute.set_alarm(None, lambda: rung.append("never"))

    compute.run(set_none)
    time.sleep(0.01)
    assert compute.run(lambda: rung) == []


def test_jobs_come_before_an_alarm_that_is_far_off(compute: ComputeThread) -> None:
    compute.run(lambda: compute.set_alarm(time.monotonic() + 3600, lambda: None))
    assert compute.run(lambda: 5) == 5


def test_an_alarm_survives_jobs_that_come_meanwhile(compute: ComputeThread) -> None:
    rang = threading.Event()
    compute.run(lambda: compute.set_alarm(time.monotonic() + 0.02, rang.set))
    while not rang.is_set():
        compute.run(lambda: None)
    assert rang.is_set()


# ---------------------------------------------------------------------------------- its end


def test_closing_waits_for_the_jobs_before() -> None:
    compute, done = ComputeThread("a test's device"), []
    compute.post(lambda: time.sleep(0.01))
    compute.post(lambda: done.append(1))
    compute.close()
    assert done == [1]
    compute.close()


def test_nothing_runs_after_closing() -> None:
    compute = ComputeThread("a test's device")
    for job in (lambda: compute.run(lambda: 5), lambda: compute.post(lambda: None)):
        compute.close()
        with pytest.raises(DeviceFailed, match="a test's device is closed"):
            job()


def test_it_closes_although_an_alarm_is_far_off() -> None:
    compute = ComputeThread("a test's device")
    compute.run(lambda: compute.set_alarm(time.monotonic() + 3600, lambda: None))
    compute.close()


def test_a_forked_process_has_none(compute: ComputeThread, monkeypatch: pytest.MonkeyPatch) -> None:
    compute.run(lambda: None)
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    for job in (
        compute.require_own_process,
        lambda: compute.run(lambda: 5),
        lambda: compute.post(lambda: None),
    ):
        with pytest.raises(DeviceFailed, match="forked"):
            job()
    monkeypatch.undo()
    assert compute.run(lambda: 5) == 5
