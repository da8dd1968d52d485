"""The thread that computes, and what is left where others had to."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator

import pytest

from isthmus import Runtime
from isthmus.device.base import Device
from isthmus.model.batch_probe import exact_types


@pytest.fixture
def device() -> Iterator[Device]:
    with Runtime(device="cpu", threads=2) as runtime:
        yield runtime.device


@pytest.mark.skipif(sys.platform != "linux", reason="counts the threads in /proc")
def test_a_job_computed_elsewhere_leaves_no_workers(device: Device) -> None:
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
