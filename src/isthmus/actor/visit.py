"""What is done with an actor between two tokens of an answer, while its guest is paused.

Somebody adds a Visit to the message's Visits and waits; the message's own work lets it in when the
guest has paused. If the message ends before that, the Visit is missed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from isthmus.errors import IsthmusError

_Result = TypeVar("_Result")


class Visit(Generic[_Result]):
    """See the module. `ends`: the message is paused for good, and resumed as another one."""

    def __init__(self, work: Callable[[], _Result], *, ends: bool = False) -> None:
        self._work = work
        self.ends = ends
        self._results: list[_Result] = []
        self._error: BaseException | None = None
        self._over = threading.Event()

    def run(self) -> None:
        """Does the work, and tells whoever waits for it."""
        try:
            self._results.append(self._work())
        except BaseException as error:
            self._error = error
        self._over.set()

    def refuse(self, why: IsthmusError) -> None:
        """Tells whoever waits that it cannot be."""
        self._error = why
        self._over.set()

    def miss(self) -> None:
        """Tells whoever waits that the message has ended before."""
        self._over.set()

    def try_result(self) -> list[_Result]:
        """What came of it, once it is over; nothing if it was missed. Raises what the work did."""
        self._over.wait()
        if self._error is not None:
            raise self._error
        return self._results


class Visits:
    """Those of one message. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Visit[Any]] = []
        self._closed = False

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, visit: Visit[Any]) -> None:
        """Has a visit wait, or be missed if the message has ended."""
        with self._lock:
            if not self._closed:
                self._waiting.append(visit)
                return
        visit.miss()

    def take(self) -> list[Visit[Any]]:
        """Those that wait, which they do no longer."""
        with self._lock:
            taken, self._waiting = self._waiting, []
        return taken

    def close(self) -> None:
        """The message has ended: those that wait, and all that come, are missed."""
        with self._lock:
            self._closed = True
        for visit in self.take():
            visit.miss()
