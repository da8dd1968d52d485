"""Threads for what may take long, so that the loop never waits for it.

Threads are made as they are needed and end when they are idle: an actor that handles no message, or
whose message waits for a token, has none.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from isthmus.errors import Overloaded

_IDLE_S = 5.0
"""Seconds that a thread waits for more work before it ends."""


class Pool:
    """Runs work, which must not raise, on threads: at most `most`, or as many as are wanted."""

    def __init__(self, name: str, most: int | None = None) -> None:
        self._name = name
        self._most = most
        self._lock = threading.Lock()
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._n_threads = 0
        self._n_free = 0
        """Threads that wait for work, less the work that waits for them."""

    def submit(self, work: Callable[[], None]) -> None:
        """Has it run soon. Overloaded if it needs a thread and the system has none left."""
        with self._lock:
            starts = self._n_free <= 0 and (self._most is None or self._n_threads < self._most)
            self._n_threads += starts
            self._n_free -= not starts
        if starts:
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                with self._lock:
                    self._n_threads -= 1
                raise Overloaded(f"a message cannot be handled now: {error}") from None
        self._work.put(work)

    def _run(self) -> None:
        while (work := self._next()) is not None:
            work()
            del work  # an idle thread keeps nothing of what it did
            with self._lock:
                self._n_free += 1

    def _next(self) -> Callable[[], None] | None:
        while True:
            try:
                return self._work.get(timeout=_IDLE_S)
            except queue.Empty:
                with self._lock:
                    if self._n_free > 0:  # otherwise work is on its way here
                        self._n_free -= 1
                        self._n_threads -= 1
                        return None
