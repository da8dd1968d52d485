"""The thread that computes, so that the device's workers belong to one thread.

Libraries built with OpenMP (the usual wheels are) keep a team of workers for every thread that
ever computed. Once there are more of those than processors, each barrier in each kernel goes to
sleep and decoding takes half again as long. So one thread, called home, does the computing:

* a guest's message runs at home when nobody else does, and submits without any hand-over: the usual
  case, and the fastest
* whoever runs elsewhere hands submissions over; home takes them when it is free, or after each
  submission of the guest that it hosts
* if the hosted guest is busy with something else, they are computed where they are, slower, rather
  than wait for it

A hand-over takes some 100 µs, twice the time that everything else about a token takes.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from isthmus.errors import DeviceFailed

_Result = TypeVar("_Result")
_PATIENCE_S = 0.005


class _Submission(Generic[_Result]):
    """A job that was handed over, and what came of it. Whoever claims it first runs it."""

    def __init__(self, job: Callable[[], _Result]) -> None:
        self._job = job
        self._unclaimed, self._finished = threading.Lock(), threading.Lock()
        self._finished.acquire()
        self._result: _Result
        self._error: BaseException | None = None

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

    def __init__(self, name: str) -> None:
        self._name = name
        self._inbox: queue.SimpleQueue[_Submission[object] | Callable[[], None] | None] = (
            queue.SimpleQueue()
        )
        self._exclusive = threading.Lock()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ident = 0
        self._hosting = False
        self._computing = False
        self._closed = False

    def try_host(self, work: Callable[[], None]) -> bool:
        """Has home run `work`, which may submit and must not raise; False if it hosts already."""
        self._start()
        with self._starting:
            if self._hosting:
                return False
            self._hosting = True
        self._inbox.put(work)
        return True

    def run(self, job: Callable[[], _Result]) -> _Result:
        """What `job` returns or raises. One job runs at a time, on whichever thread."""
        if threading.get_ident() == self._ident:
            try:
                return self._exclusively(job)
            finally:
                self._serve_waiting()
        self._start()
        submission = _Submission(job)
        self._inbox.put(submission)  # type: ignore[arg-type]
        while not submission.wait(_PATIENCE_S):
            if self._hosting and not self._computing and submission.claim():
                return self._exclusively(job)
        return submission.outcome()

    def close(self) -> None:
        """Ends the thread once it is free; a second call does nothing."""
        with self._starting:
            self._closed = True
        if self._thread is not None:
            self._inbox.put(None)
            self._thread.join()
            self._thread = None

    def _start(self) -> None:
        if self._thread is not None and not self._closed:
            return
        with self._starting:
            if self._closed:
                raise DeviceFailed(f"{self._name} is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
                self._thread.start()

    def _exclusively(self, job: Callable[[], _Result]) -> _Result:
        with self._exclusive:
            self._computing = True
            try:
                return job()
            finally:
                self._computing = False

    def _serve(self) -> None:
        self._ident = threading.get_ident()
        while (task := self._inbox.get()) is not None:
            if isinstance(task, _Submission):
                self._compute(task)
                continue
            try:
                task()
            finally:
                self._hosting = False

    def _serve_waiting(self) -> None:
        """Between two submissions of a hosted guest: what others have handed over meanwhile."""
        while not self._inbox.empty():
            task = self._inbox.get()
            if isinstance(task, _Submission):
                self._compute(task)
            else:  # the order to end, for later
                self._inbox.put(task)
                return

    def _compute(self, submission: _Submission[object]) -> None:
        if submission.claim():
            self._exclusively(submission.execute)
