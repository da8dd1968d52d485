"""Jobs of guests' `compute` calls, one after another: each message's next job after the others'."""

from __future__ import annotations

from collections import deque

from isthmus.actor.ask import Answer, Jobs


class JobQueue:
    """See the module. Only for the device's thread."""

    def __init__(self) -> None:
        self._asks: deque[Jobs] = deque()

    @property
    def has_work(self) -> bool:
        """Whether any job is left."""
        return bool(self._asks)

    def add(self, ask: Jobs) -> None:
        """Takes an ask, which is answered by one of the next calls of `work`."""
        self._asks.append(ask)

    def remove(self, ask: Jobs) -> bool:
        """Takes back an ask whose message has to end; False if it was answered already."""
        if ask not in self._asks:
            return False
        self._asks.remove(ask)
        return True

    def work(self) -> list[Answer]:
        """Computes one job; returns who is answered by that."""
        ask = self._asks.popleft()
        try:
            next(ask.jobs)
        except StopIteration as end:
            return [Answer(ask.message, end.value)]
        except BaseException as error:
            return [Answer(ask.message, None, error)]
        self._asks.append(ask)
        return []
