"""Advances an engine's epoch while calls are open, so that guests are suspended now and then.

Owns one thread. A running guest compares the epoch with its own at every loop and function entry.

========  =================================================================================
state     what the thread does
========  =================================================================================
none      it does not exist: no guest was ever called
ticking   a call is open: it advances the epoch every TICK_S
lingering none is open: it looks again every TICK_S, LINGER_TICKS times
asleep    it waits for a call and uses no processor time
closed    it has ended
========  =================================================================================

Lingering is why a call does not have to wake a thread: usually the last one is not long ago.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

from isthmus.errors import ActorClosed

TICK_S = 0.01
LINGER_TICKS = 20


class Watchdog:
    """See the module.

    Whoever opens a call adds something that stands for it to `calls`, then calls `wake` if
    `asleep`, and removes it at the call's end.
    """

    def __init__(self, tick: Callable[[], None]) -> None:
        self.calls: set[object] = set()
        self._ticker = _Ticker(tick, self.calls)
        self._finalizer = weakref.finalize(self, self._ticker.stop)

    @property
    def asleep(self) -> bool:
        """True while a new call must `wake` the thread."""
        return self._ticker.asleep

    def wake(self) -> None:
        """Has the thread look at `calls`, starting it where needed; ActorClosed once closed."""
        self._ticker.wake()

    def close(self) -> None:
        """Ends the thread and waits for it; a second call does nothing."""
        self._finalizer()
        self._ticker.join()


class _Ticker:
    """The thread's side. Does not know the Watchdog, so that dropping that one ends the thread."""

    def __init__(self, tick: Callable[[], None], calls: set[object]) -> None:
        self.asleep = True
        self._tick = tick
        self._calls = calls
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def wake(self) -> None:
        with self._condition:
            if self._stopped:
                raise ActorClosed("the engine is closed")
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="isthmus-watchdog", daemon=True
                )
                self._thread.start()
            self.asleep = False
            self._condition.notify()

    def stop(self) -> None:
        with self._condition:
            self._stopped = True
            self.asleep = True
            self._condition.notify()

    def join(self) -> None:
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        idle_ticks = 0
        with self._condition:
            while not self._stopped:
                self._condition.wait(TICK_S)
                if self._calls:
                    idle_ticks = 0
                    self._tick()
                    continue
                idle_ticks += 1
                if idle_ticks > LINGER_TICKS:
                    self._sleep()
                    idle_ticks = 0

    def _sleep(self) -> None:
        """Waits until a call wakes it; one that saw `asleep` too early is found in `calls`."""
        self.asleep = True
        if self._calls:
            self.asleep = False
        while self.asleep and not self._stopped:
            self._condition.wait()
