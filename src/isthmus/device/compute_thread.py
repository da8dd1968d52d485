"""The thread that computes, so that the device's workers belong to one thread.

Libraries built with OpenMP (the usual wheels are) keep a team of workers for every thread that
ever computed. Once there are more of those than processors, each barrier in each kernel goes to
sleep and decoding takes half again as long. So one thread, called home, does the computing:

* a guest's message runs at home when nobody else does, and submits without any hand-over: the usual
  case, and the fastest
* whoever runs elsewhere hands jobs over; home takes them in the order in which they came when it
  is free, while the guest that it hosts waits, or after each job of that guest
* if the hosted guest is busy with something else, they are computed where they are, slower, rather
  than wait for it; the team that this made is sent home at once

One job runs at a time, on whichever thread: what only jobs touch needs no lock. A hand-over takes
some 100 µs, twice the time that everything else about a token takes.
"""

from __future__ import annotations

import contextlib
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
PATIENCE_S = 0.005
"""How long home's guest may do something else before a job is computed where it came from."""
_FOR_EVER_S = 3600.0


def _nothing() -> None:
    pass


class Submission(Generic[_Result]):
    """A job that was handed over, and what came of it. Whoever claims it first runs it."""

    def __init__(self, job: Callable[[], _Result]) -> None:
        self._job = job
        self._unclaimed, self._finished = threading.Lock(), threading.Lock()
        self._finished.acquire()
        self._result: _Result
        self._error: BaseException | None = None

    @property
    def claimed(self) -> bool:
        """Whether somebody runs it, or ran it."""
        return self._unclaimed.locked()

    def claim(self) -> bool:
        """True for the first who asks."""
        return self._unclaimed.acquire(blocking=False)

    def execute(self) -> None:
        """Runs the job; only after `claim`."""
        try:
            self._result = self._job()
        except BaseException as error:  # raised where the job came from
            self._error = error
        self._finished.release()

    def wait(self, timeout_s: float) -> bool:
        """Whether it was finished in time."""
        return self._finished.acquire(timeout=timeout_s)

    def outcome(self) -> _Result:
        """What the job returned or raised."""
        if self._error is not None:
            raise self._error
        return self._result


class ComputeThread:
    """See the module. Started when it is first needed."""

    def __init__(self, name: str, end_workers: Callable[[], None] = _nothing) -> None:
        """`end_workers` ends the workers that the library keeps for the calling thread."""
        self._name = name
        self._end_workers = end_workers
        self._pid = os.getpid()
        self._inbox: queue.SimpleQueue[Submission[object] | Callable[[], None] | None] = (
            queue.SimpleQueue()
        )
        self._exclusive = threading.Lock()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ident = 0
        self._hosting = False
        self._serving = False
        """Whether home takes jobs though it hosts a guest, or is about to."""
        self._away_since = 0.0
        """When home's guest went on with something else."""
        self._owner = 0
        """The thread that computes now."""
        self._closed = False

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is home."""
        return threading.get_ident() == self._ident

    def require_own_process(self) -> None:
        """DeviceFailed in a process that was forked from the one that opened the device."""
        if os.getpid() != self._pid:
            raise DeviceFailed(
                "this process was forked from one that has a device open, which does not survive "
                "a fork: open the runtime after forking, or start processes by spawn"
            )

    def try_host(self, work: Callable[[], None]) -> bool:
        """Has home run `work`, which may submit and must not raise; False if it hosts already."""
        self._start()
        with self._starting:
            if self._hosting:
                return False
            self._away_since = time.monotonic()
            self._hosting = True
        self._inbox.put(work)
        return True

    def run(self, job: Callable[[], _Result]) -> _Result:
        """What `job` returns or raises. A job may run others, which become part of it."""
        me = threading.get_ident()
        if me == self._owner:
            return job()
        if me == self._ident:
            self._serving = True
            try:
                return self._exclusively(job)
            finally:
                self._serve_waiting()
                self._go_away()
        submission = self.submit(job)
        while not submission.wait(PATIENCE_S):
            self.rescue(submission)
        return submission.outcome()

    def submit(self, job: Callable[[], _Result]) -> Submission[_Result]:
        """Hands a job over and does not wait for it."""
        self._start()
        submission = Submission(job)
        self._inbox.put(submission)  # type: ignore[arg-type]
        return submission

    def rescue(self, submission: Submission[_Result]) -> None:
        """Runs a job here that home does not come to, since the guest there is busy.

        Not where the guest is between two jobs: here it would take half as long again.
        """
        if self._is_away() and submission.claim():
            self._exclusively(submission.execute)
            self._end_workers()

    def serve(self, timeout_s: float) -> None:
        """At home: takes the next job that was handed over, if one comes in time."""
        self._serving = True
        try:
            self._take(self._inbox.get(timeout=timeout_s))
        except queue.Empty:
            pass
        finally:
            self._go_away()

    def poke(self) -> None:
        """Has home return from `serve`."""
        nothing = Submission(lambda: None)
        nothing.claim()
        self._inbox.put(nothing)  # type: ignore[arg-type]

    def close(self) -> None:
        """Ends the thread once it is free; a second call does nothing."""
        with self._starting:
            self._closed = True
        if self._thread is not None:
            self._inbox.put(None)
            self._thread.join()
            self._thread = None

    def _start(self) -> None:
        self.require_own_process()
        if self._thread is not None and not self._closed:
            return
        with self._starting:
            if self._closed:
                raise DeviceFailed(f"{self._name} is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
                self._thread.start()

    def _go_away(self) -> None:
        self._away_since = time.monotonic()
        self._serving = False

    def _is_away(self) -> bool:
        """Whether home's guest has been busy with something else for some time."""
        away = self._hosting and not (self._serving or self._owner)
        return away and time.monotonic() - self._away_since >= PATIENCE_S

    def _exclusively(self, job: Callable[[], _Result]) -> _Result:
        with self._exclusive:
            self._owner = threading.get_ident()
            try:
                return job()
            finally:
                self._owner = 0

    def _serve(self) -> None:
        self._ident = threading.get_ident()
        while (task := self._inbox.get()) is not None:
            if isinstance(task, Submission):
                self._compute(task)
                continue
            try:
                task()
            except BaseException:
                _log.exception("the device's thread goes on after an error that nobody expected")
            finally:
                self._hosting = False

    def _serve_waiting(self) -> None:
        """Between two jobs of a hosted guest: what others have handed over before."""
        for _ in range(self._inbox.qsize()):
            self._take(self._inbox.get())

    def _take(self, task: Submission[object] | Callable[[], None] | None) -> None:
        if isinstance(task, Submission):
            self._compute(task)
        else:  # the order to end, for later
            self._inbox.put(task)

    def _compute(self, submission: Submission[object]) -> None:
        if submission.claim():
            self._exclusively(submission.execute)


class Bell:
    """What one thread waits for and any thread rings; at home, jobs are served meanwhile.

    It may ring for nothing: whoever waits looks again at what it waits for.
    """

    def __init__(self, thread: ComputeThread) -> None:
        self._thread = thread
        self._silent = threading.Lock()
        self._silent.acquire()
        self.at_home = False
        """Whether home is who waits."""

    def ring(self) -> None:
        """Ends the wait that is under way, or else the next one."""
        with contextlib.suppress(RuntimeError):  # it rings already
            self._silent.release()
        if self.at_home:
            self._thread.poke()

    def wait(self, timeout_s: float | None = None) -> None:
        """Until somebody rings or the time is over; None waits as long as it takes."""
        timeout_s = _FOR_EVER_S if timeout_s is None else max(timeout_s, 0.0)
        if not self._thread.is_current:
            self._silent.acquire(timeout=timeout_s)
            return
        self.at_home = True
        end = time.monotonic() + timeout_s
        while not self._silent.acquire(blocking=False):
            left = end - time.monotonic()
            if left <= 0:
                break
            self._thread.serve(left)
        self.at_home = False
