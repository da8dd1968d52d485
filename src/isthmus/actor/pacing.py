"""Guests that compute for long without a token give way to others that decode.

A guest in a loop takes a processor for as long as its deadline allows. Others then decode many
times slower than their share of the processors would say, since the device's workers meet between
any two operations and wait for the one that has none. So a message that has used up its allowance
since its last token pauses at each tick of the watchdog, as long as others ask for tokens: all
such messages together get about a quarter of one processor. Nobody pauses while nobody decodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_ALLOWANCE_S = 0.05
"""Seconds of processor time that a message may use between two tokens without ever pausing."""
_PAUSE_S = 0.03
"""Seconds of one pause for each message that pauses: a tick is 0.01."""
_LONGEST_PAUSE_S = 0.5
"""Seconds by which a pause may put off a deadline or a cancellation."""
_RECENTLY_S = 0.3
"""Seconds for which a request for tokens, or a pause, counts as going on."""


class Pacer:
    """What all messages of one runtime know of one another. Used by any thread."""

    def __init__(
        self,
        n_asked: Callable[[], int],
        now: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.thread_time,
    ) -> None:
        """`n_asked` is how often anybody has asked for tokens; `cpu` is the thread's own time."""
        self._n_asked = n_asked
        self.now, self.cpu = now, cpu
        self._n_seen = n_asked()
        self._asked_at = now() - _RECENTLY_S
        self._paused_at: dict[Pace, float] = {}

    def pause_s(self, pace: Pace) -> float:
        """Seconds that a message is to pause now, which is over its allowance."""
        now = self.now()
        if (n := self._n_asked()) != self._n_seen:
            self._n_seen, self._asked_at = n, now
        if now - self._asked_at >= _RECENTLY_S:
            return 0.0
        self._paused_at[pace] = now
        recent = [it for it, at in tuple(self._paused_at.items()) if now - at < 2 * _RECENTLY_S]
        return min(_PAUSE_S * len(recent), _LONGEST_PAUSE_S)

    def forget(self, pace: Pace) -> None:
        """Keeps nothing of a message that ended."""
        self._paused_at.pop(pace, None)


class Pace:
    """One actor's message. Its methods are called on the thread that handles it."""

    def __init__(self, pacer: Pacer, n_tokens: Callable[[], int]) -> None:
        """`n_tokens` is how many tokens the message has used so far."""
        self._pacer = pacer
        self._n_tokens = n_tokens
        self._n_before = -1
        self._since = 0.0

    def begin(self) -> None:
        """A message begins."""
        self._n_before = -1

    def end(self) -> None:
        """It has ended."""
        self._pacer.forget(self)

    def tick(self) -> None:
        """Pauses if others are to go first. Called at each tick while the guest runs."""
        n, used = self._n_tokens(), self._pacer.cpu()
        if n != self._n_before:
            self._n_before, self._since = n, used
        elif used - self._since >= _ALLOWANCE_S and (pause_s := self._pacer.pause_s(self)):
            time.sleep(pause_s)
