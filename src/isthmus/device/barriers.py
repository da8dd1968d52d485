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

Spinning is not tried again while the processors are never idle: on a contended machine a single
pass that spins may take a second, since it waits a time slice at each of its barriers.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from isthmus.config import DeviceSettings
from isthmus.native.loader import Library

_WINDOW_NS = 30_000_000
"""Nanoseconds of computing after which it is judged. Shorter ones would take a single time slice
of somebody else for contention."""
_MIN_RUNNING = 0.9
"""Share of that time that the computing thread must have had a processor. Beside one other busy
thread for each processor it has about a half, by the scheduler's rules."""
_SLEEP_NS = 3_000_000_000
"""Nanoseconds for which workers sleep before it is asked whether they may spin again."""
_MIN_IDLE = 0.1
"""Share of the processors' time that must have been idle meanwhile. Workers that sleep leave more
than that to nobody if nobody wants it."""


class Barriers:
    """See the module. `note` is called by one thread at a time, `close` after the last of them."""

    def __init__(
        self,
        sleep: Callable[[], Callable[[], None]] | None,
        idle: Callable[[], float] | None = None,
    ) -> None:
        """`sleep` has workers sleep until what it returns is called; None if nothing does. `idle`
        is the share of the processors' time that was idle since it was asked last."""
        self._sleep = sleep
        self._idle = idle or ProcessorTimes().idle
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
                self._until_ns = now_ns + _SLEEP_NS
                if self._idle() >= _MIN_IDLE:
                    self.close()
            return
        self._wall_ns += wall_ns
        self._running_ns += running_ns
        if self._wall_ns < _WINDOW_NS:
            return
        contended = self._running_ns < _MIN_RUNNING * self._wall_ns
        self._wall_ns = self._running_ns = 0
        if contended:
            self._spin = self._sleep()
            self._until_ns = now_ns + _SLEEP_NS
            self._idle()

    def close(self) -> None:
        """Lets workers spin; a second call does nothing."""
        if self._spin is not None:
            self._spin()
            self._spin = None


class ProcessorTimes:
    """How long the processors that this process may use were idle, by the system's own counts."""

    def __init__(self, file: Path = Path("/proc/stat")) -> None:
        """`file` is in the form of Linux's proc_stat(5); without it, processors count as idle."""
        self._file = file
        self._before = (0, 0)

    def idle(self) -> float:
        """The share of the time since this was asked last, or since the system began; 0 to 1."""
        idle, total = self._ticks()
        before, self._before = self._before, (idle, total)
        passed = total - before[1]
        return (idle - before[0]) / passed if passed > 0 else 1.0

    def _ticks(self) -> tuple[int, int]:
        """Those that were idle, and all of them."""
        try:
            lines = self._file.read_text().splitlines()
        except OSError:
            return 0, 0
        idle = total = 0
        names = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        for name, *ticks in map(str.split, lines):
            if name in names:  # user, nice, system, idle, iowait, irq, softirq, steal
                counts = [int(it) for it in ticks[:8]]
                idle += sum(counts[3:5])
                total += sum(counts)
        return idle, total


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
