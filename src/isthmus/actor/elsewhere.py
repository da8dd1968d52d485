"""What is done away from the loop's thread, and comes back by mail: long work, and slow guests."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from isthmus.actor.ask import Answer, Aside
from isthmus.actor.message import Message
from isthmus.actor.pool import Pool
from isthmus.actor.slow_lane import SlowLane, SlowTurn

_MAX_THREADS = 8
"""Threads for work that takes long and waits for no agent."""
_MAX_SLOW = max(1, min(4, (os.cpu_count() or 2) // 2))
"""Threads for guests that compute for long."""


class Elsewhere:
    """See the module. One for each loop, whose thread calls it."""

    def __init__(
        self,
        answered: Callable[[Answer], None],
        came_in: Callable[[Message, Any, bool], None],
        said: Callable[[Message], None],
        decodes: Callable[[], bool],
    ) -> None:
        """The first three are called on other threads: with the answer to an ask; with what a slow
        guest asks for, see `SlowTurn`; with a message whose slow guest emitted something.
        `decodes()` says whether agents ask for tokens now."""
        self._answered = answered
        self._came_in = came_in
        self._said = said
        self._work = Pool("isthmus work", _MAX_THREADS)
        self._tools = Pool("isthmus tool")
        self._slow = SlowLane(_MAX_SLOW, decodes)

    def do(self, ask: Aside[Any]) -> None:
        """Has work done by a thread. Overloaded if the system has none."""

        def work() -> None:
            try:
                answer = Answer(ask.message, ask.work())
            except BaseException as error:
                answer = Answer(ask.message, None, error)
            self._answered(answer)

        (self._tools if ask.blocks else self._work).submit(work)

    def compute(self, answer: Answer, n_slices: int = 0) -> None:
        """Has a guest that computes for long go on in the slow lane, until it asks or ends.

        `n_slices` are those that it has had since its last ask. Overloaded if the system has no
        thread.
        """
        message, value, error = answer
        message.waits_for = None
        self._slow.put(
            SlowTurn(
                message,
                value,
                error,
                n_slices=n_slices,
                come_in=self._came_in,
                said=self._said,
            )
        )
