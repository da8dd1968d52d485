"""When messages are to be looked at, since their time is over."""

from __future__ import annotations

import heapq
import itertools

from isthmus.actor.message import Message

_FEW = 256


class Timers:
    """The times at which messages end, earliest first. Only for the loop's thread."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Message]] = []
        self._numbers = itertools.count()

    @property
    def first(self) -> float | None:
        """The earliest time, on the clock of time.monotonic."""
        return self._heap[0][0] if self._heap else None

    def add(self, message: Message, n_messages: int) -> None:
        """Notes when a message ends, as far as is known now.

        Those of messages that ended are dropped once they are many more than `n_messages`.
        """
        at, heap = message.ends_at, self._heap
        if at is None:
            return
        if len(heap) > _FEW + 4 * n_messages:
            heap[:] = [it for it in heap if not it[2].ended.is_set()]
            heapq.heapify(heap)
        heapq.heappush(heap, (at, next(self._numbers), message))

    def due(self, now: float) -> list[Message]:
        """The messages whose time is over and which have not ended; they are forgotten here."""
        found = []
        while self._heap and self._heap[0][0] <= now:
            message = heapq.heappop(self._heap)[2]
            if not message.ended.is_set():
                found.append(message)
        return found
