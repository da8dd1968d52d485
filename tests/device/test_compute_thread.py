"""The thread that computes, and what is left where others had to."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from isthmus import Runtime
from isthmus.device import compute_thread
from isthmus.device.barriers import Barriers
from isthmus.device.base import Device
from isthmus.model.batch_probe import exact_types


@pytest.fixture
def device() -> Iterator[Device]:
    with Runtime(device="cpu", threads=2) as runtime:
        yield runtime.device


@pytest.mark.skipif(sys.platform != "linux", reason="counts the threads in /proc")
def test_a_job_computed_elsewhere_leaves_no_workers(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "barriers", Barriers(None))  # a busy machine would bring its own
    thread, backend = device.compute_thread, device.new_backend()
    free, hosted = threading.Event(), threading.Event()
    job = lambda: exact_types(device, backend)  # noqa: E731
    try:
        at_home = thread.run(job)
        before = len(os.listdir("/proc/self/task"))

        def guest() -> None:
            hosted.set()
            free.wait()

        assert thread.try_host(guest)
        hosted.wait()
        assert thread.run(job) == at_home  # here, since home is busy
        assert len(os.listdir("/proc/self/task")) <= before
    finally:
        free.set()
        backend.close()


def test_home_is_waited_for_between_its_guests_jobs(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that came during a long one is computed there, however long that took."""
    monkeypatch.setattr(compute_thread, "PATIENCE_S", 0.1)
    thread = device.compute_thread
    begun, handed_over = threading.Event(), threading.Event()

    def long_job() -> None:
        begun.set()
        handed_over.wait()
        time.sleep(0.25)

    def guest() -> None:
        thread.serve(20.0)  # as it waits for a step that others compute
        time.sleep(0.02)
        thread.run(lambda: None)

    assert thread.try_host(guest)
    thread.submit(long_job)
    begun.wait()
    submission = thread.submit(threading.get_ident)
    handed_over.set()
    while not submission.wait(0.001):
        thread.rescue(submission)
    assert submission.outcome() != threading.get_ident()
