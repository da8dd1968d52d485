"""Where guests go on that compute for longer than a time slice: slice by slice, in turns.

On the loop's thread such a guest would keep everybody else waiting, so it leaves that thread until
it asks for something or ends. While others decode, all guests in the lane together get about a
quarter of one processor. More would cost the others far more than that: the device's workers meet
between any two operations, and all wait for the one that has no processor.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from typing import Any

from isthmus.actor.message import Message
from isthmus.actor.pool import Pool
from isthmus.wasm import SLICE_OVER


class SlowTurn:
    """A guest that computes for long, from where it left the loop until it asks or ends."""

    def __init__(
        self,
        message: Message,
        value: Any,
        error: Any,
        *,
        n_slices: int = 0,
        come_in: Callable[[Message, Any, bool], None],
        said: Callable[[Message], None],
    ) -> None:
        """`value` or `error` is the answer that it goes on with, and `n_slices` are the time slices
        that it has had since its last ask: with a second one it is slow. `come_in` takes what it
        asks for, None if it has ended, or the error that its work raised, and whether it was slow.
        `said` is told that it has emitted something."""
        self._message = message
        self._value, self._error = value, error
        self._come_in = come_in
        self._said = said
        self._n_slices = n_slices

    def take(self) -> bool:
        """Lets the guest compute for a time slice. Whether it has more to compute."""
        message = self._message
        ask = message.resume(self._value, self._error)
        self._value = self._error = None
        self._n_slices += 1
        if ask is not SLICE_OVER:
            self._come_in(message, ask, self._n_slices > 1)
            return False
        if message.pieces:
            self._said(message)
        return True


class SlowLane:
    """See the module."""

    def __init__(self, most: int, decodes: Callable[[], bool]) -> None:
        """`most` threads; `decodes()` says whether anybody asks for tokens now."""
        self._most = most
        self._decodes = decodes
        self._pool = Pool("isthmus slow guest", most)
        self._turns: queue.SimpleQueue[SlowTurn] = queue.SimpleQueue()

    def put(self, turn: SlowTurn) -> None:
        """Has a guest compute until it asks or ends. Overloaded if the system has no thread."""
        self._pool.submit(self._run)
        self._turns.put(turn)

    def _run(self) -> None:
        """One slice of the guest that has waited longest; then the next one's, and so on."""
        turn, start = self._turns.get(), time.monotonic()
        while turn.take():
            if self._decodes():
                time.sleep((4 * self._most - 1) * (time.monotonic() - start))
            self._turns.put(turn)
            turn, start = self._turns.get(), time.monotonic()
