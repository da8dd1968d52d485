"""A thread that does what signal handlers must not interrupt.

Python runs signal handlers in the main thread, between any two of its steps, and they may raise.
What the main thread leaves to a Helper is done whole, and the main thread goes on after it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

_Result = TypeVar("_Result")


class _Job:
    """Something to be done once, however often it is handed over."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.result: Any = None
        self.error: BaseException | None = None
        self.is_done = False
        self.ended = threading.Lock()
        """Held until it is done."""
        self.ended.acquire()


class Helper:
    """See the module. The thread ends with its Helper and keeps no process from ending."""

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        threading.Thread(target=_serve, args=(self._jobs,), name=name, daemon=True).start()
        weakref.finalize(self, self._jobs.put, None)

    def do(self, work: Callable[[], _Result]) -> _Result:
        """What `work` returns or raises. What a signal handler raises meanwhile is raised once the
        work is done.

        A handler may raise before the job is handed over, after that, or while it is waited for;
        nobody can tell which. So it is handed over again, and the thread does it once.
        """
        job, raised = _Job(work), None
        while not job.is_done:
            try:
                self._jobs.put(job)
                job.ended.acquire()
            except BaseException as error:
                raised = error
        if raised is not None:
            raise raised
        if job.error is not None:
            raise job.error
        result: _Result = job.result
        return result


def _serve(jobs: SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        if job.is_done:
            continue
        try:
            job.result = job.work()
        except BaseException as error:
            job.error = error
        job.is_done = True
        job.ended.release()
        del job  # what it holds is freed now, and not with the next one
