"""The actors of a runtime that are not closed, and which of them give way if memory is short."""

from __future__ import annotations

import logging
import threading

from isthmus.actor import Actor
from isthmus.counters import Counters
from isthmus.errors import ActorClosed, ActorError, SnapshotError

_log = logging.getLogger("isthmus")
_FEW_ACTORS = 16


class Roster:
    """See the module. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._actors: list[Actor] = []
        """Those that are not closed, and some that are: `_most_kept` at most without a sweep."""
        self._most_kept = _FEW_ACTORS
        self._past = Counters()
        """Counts of actors that are closed."""
        self._closed = False

    @property
    def actors(self) -> list[Actor]:
        """The actors that are not closed."""
        with self._lock:
            return [actor for actor in self._actors if actor.state != "closed"]

    def adopt(self, actor: object) -> None:
        """Takes a new actor. ActorClosed after `close`."""
        assert isinstance(actor, Actor)
        with self._lock:
            if self._closed:
                raise ActorClosed("the runtime is closed")
            if len(self._actors) >= self._most_kept:
                self._sweep()
            self._actors.append(actor)

    def sweep(self) -> None:
        """Lets go of closed actors."""
        with self._lock:
            self._sweep()

    def _sweep(self) -> None:
        """Each time for twice as many, or spawning would take a time that grows with the number of
        actors."""
        closed = [actor for actor in self._actors if actor.state == "closed"]
        self._past = Counters.total([self._past, *(actor.counters for actor in closed)])
        gone = set(closed)
        self._actors = [actor for actor in self._actors if actor not in gone]
        self._most_kept = _FEW_ACTORS + 2 * len(self._actors)

    def counters(self) -> list[Counters]:
        """Counts of all actors, those that are closed among them."""
        with self._lock:
            return [self._past, *(actor.counters for actor in self._actors)]

    def n_in(self, state: str) -> int:
        """How many actors are in a state."""
        return sum(actor.state == state for actor in self.actors)

    def evict(self, nbytes: int) -> tuple[int, str]:
        """Evicts idle actors, least recently used first, until `nbytes` are free.

        Returns how much that gave, and why it was not more.
        """
        freed, why = 0, "none is idle that could be evicted"
        for actor in sorted(self.actors, key=lambda it: it.last_used):
            if freed >= nbytes:
                break
            try:
                freed += actor.try_evict() if actor.state == "idle" else 0
            except ActorError:
                continue  # somebody used it meanwhile
            except SnapshotError as error:
                why = f"idle ones cannot be evicted: {error}"
                _log.warning("%s", why)
        return freed, why

    def close(self) -> None:
        """Closes all actors, and takes no more."""
        with self._lock:
            self._closed = True
            actors, self._actors = self._actors, []
        close_all(actors)


def close_all(actors: list[Actor]) -> None:
    """Closes actors. All of them are told first: guests that compute for long take turns."""
    for actor in actors:
        actor.cancel()
    for actor in actors:
        actor.close()
