"""How a device's workers wait for one another: they spin, or they sleep while others want to run.

Between two operations of a graph all workers meet at a barrier. On a quiet machine the others come
within microseconds, so whoever waits had best spin. On a machine where others compute too, a worker
is often without a processor for some milliseconds. One that spins meanwhile uses up its own time
for nothing, and keeps the processor that the other one could have had, so a token may take many
times as long. One that sleeps lets the other one run.

GNU's OpenMP runtime fixes how long workers spin when it is loaded, but it all but stops spinning
while it has more threads than there are processors. So a `Reserve` of threads that do nothing is
held while the machine is contended. The work is shared among the same workers in both states, so
no bit of a result depends on the state.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from isthmus.config import DeviceSettings
from isthmus.native.loader import Library

_WINDOW_NS = 30_000_000
"""Nanoseconds of computing after which it is judged. Shorter ones would take a single time slice
of somebody else for contention."""
_LEAST_RUNNING = 0.9
"""Share of that time that the computing thread must have had a processor. Beside one other busy
thread for each processor it has about a half, by the scheduler's rules."""
_SLEEP_S = 3.0
"""Seconds for which workers sleep at barriers before spinning is tried again. A window that spins
on a contended machine lasts a hundredth of that."""


class Barriers:
    """See the module. `note` is called by one thread at a time, `close` after the last of them."""

    def __init__(self, sleep: Callable[[], Callable[[], None]] | None) -> None:
        """`sleep` has workers sleep until what it returns is called; None if nothing does."""
        self._sleep = sleep
        self._spin: Callable[[], None] | None = None
        self._until_ns = 0
        self._wall_ns = self._running_ns = 0

    @property
    def sleeping(self) -> bool:
        """Whether workers that wait sleep at once."""
        return self._spin is not None

    def note(self, now_ns: int, wall_ns: int, running_ns: int) -> None:
        """A graph was computed by `now_ns`: it took `wall_ns`, for `running_ns` of which the
        computing thread had a processor. Nanoseconds."""
        if self._sleep is None:
            return
        if self._spin is not None:
            if now_ns >= self._until_ns:
                self.close()
            return
        self._wall_ns += wall_ns
        self._running_ns += running_ns
        if self._wall_ns < _WINDOW_NS:
            return
        contended = self._running_ns < _LEAST_RUNNING * self._wall_ns
        self._wall_ns = self._running_ns = 0
        if contended:
            self._spin = self._sleep()
            self._until_ns = now_ns + int(_SLEEP_S * 1e9)

    def close(self) -> None:
        """Lets workers spin; a second call does nothing."""
        if self._spin is not None:
            self._spin()
            self._spin = None


def barriers_of(library: Library, n_threads: int) -> Barriers:
    """The barriers of a library's workers, `n_threads` of them. They always spin if the library
    has another runtime than GNU's, and if there is a single worker."""
    if library.hold_team is None or n_threads < 2:
        return Barriers(None)
    enough = max(n_threads, DeviceSettings().n_threads)  # with the workers: more than processors
    return Barriers(lambda: _Reserve(library, enough).close)


class _Reserve:
    """Threads of the runtime that do nothing, held by a thread of their own until `close`."""

    def __init__(self, library: Library, n_threads: int) -> None:
        self._library = library
        self._n_threads = n_threads
        self._closed = threading.Event()
        threading.Thread(target=self._hold, name="isthmus-reserve", daemon=True).start()

    def _hold(self) -> None:
        assert self._library.hold_team is not None
        self._library.hold_team(self._n_threads)
        self._closed.wait()
        self._library.end_workers()

    def close(self) -> None:
        """Ends them soon."""
        self._closed.set()
