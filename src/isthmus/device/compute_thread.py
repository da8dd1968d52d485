"""The one thread on which a device computes, and on which the loop drives all agents.

Libraries built with OpenMP, as the usual wheels are, keep a team of workers for every thread that
ever computed. With more of these than processors, each barrier in each kernel goes to sleep, and
decoding takes half again as long. So everything that computes is a job of this thread. Jobs run one
at a time, in the order in which they came; what only jobs touch needs no lock.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from isthmus.errors import DeviceFailed

_log = logging.getLogger("isthmus")
_Result = TypeVar("_Result")


class _Submission(Generic[_Result]):
    """A job that another thread waits for, and what came of it."""

    def __init__(self, job: Callable[[], _Result]) -> None:
        self._job = job
        self._finished = threading.Event()
        self._result: _Result
        self._error: BaseException | None = None

    def __call__(self) -> None:
        try:
            self._result = self._job()
        except BaseException as error:  # raised in the thread that waits
            self._error = error
        self._finished.set()

    def outcome(self) -> _Result:
        """Waits; returns what the job returned, or raises what it raised."""
        self._finished.wait()
        if self._error is not None:
            raise self._error
        return self._result


class ComputeThread:
    """See the module. The thread starts with the first job. Safe to use from any thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pid = os.getpid()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ident = 0
        self._alarm: tuple[float, Callable[[], None]] | None = None
        self._closed = False

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is this one."""
        return threading.get_ident() == self._ident

    def require_own_process(self) -> None:
        """DeviceFailed in a process that was forked from the one that opened the device."""
        if os.getpid() != self._pid:
            raise DeviceFailed(
                "this process was forked from one that has a device open, which does not survive "
                "a fork: open the runtime after forking, or start processes by spawn"
            )

    def run(self, job: Callable[[], _Result]) -> _Result:
        """What `job` returns or raises. A job may run others, which become part of it."""
        if threading.get_ident() == self._ident:
            return job()
        submission = _Submission(job)
        self.post(submission)
        return submission.outcome()

    def post(self, job: Callable[[], None]) -> None:
        """Has `job`, which should not raise, run after those that came before; does not wait.

        Raises DeviceFailed if the thread is closed, or in a forked process.
        """
        if self._thread is None or self._closed or os.getpid() != self._pid:
            self._start()
        self._jobs.put(job)

    def set_alarm(self, at: float | None, job: Callable[[], None]) -> None:
        """Has `job` run at a time of time.monotonic, in place of the alarm set before.

        None means never. Only for jobs of this thread.
        """
        self._alarm = None if at is None else (at, job)

    def close(self) -> None:
        """Ends the thread after the jobs that came before; a second call does nothing."""
        with self._starting:
            self._closed = True
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _start(self) -> None:
        self.require_own_process()
        with self._starting:
            if self._closed:
                raise DeviceFailed(f"{self._name} is closed")
            if self._thread is None:
                thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
                thread.start()
                self._thread = thread

    def serve(self) -> None:
        """Waits for the next job and runs it. Only for a job of this thread that waits for others,
        which may have jobs themselves."""
        job = self._jobs.get()
        if job is None:  # the order to end, for later
            self._jobs.put(None)
            time.sleep(0)
        else:
            self._do(job)

    def _serve(self) -> None:
        self._ident = threading.get_ident()
        while (job := self._next()) is not None:
            self._do(job)
            del job  # an idle thread keeps nothing of what it did

    def _do(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException:
            _log.exception("the device's thread goes on after an error that nobody expected")

    def _next(self) -> Callable[[], None] | None:
        """The next job, or the alarm's once it is time; None at the end."""
        if self._alarm is None:
            return self._jobs.get()
        at, ring = self._alarm
        try:
            return self._jobs.get(timeout=max(at - time.monotonic(), 0.0))
        except queue.Empty:
            self._alarm = None
            return ring
