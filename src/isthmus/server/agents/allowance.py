"""What the owner of a key may keep: a number of agents, and bytes of the disk.

The bytes of a key are counted exactly when the key is first seen, and again once they seem to have
reached its limit. Such a count takes milliseconds for hundreds of snapshots. Between two counts
each snapshot adds what was written with it, and nothing that is removed is taken off.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from isthmus.server.http.errors import HttpError
from isthmus.server.http.fair import Threads
from isthmus.server.http.key import Key
from isthmus.server.storage.record import Record
from isthmus.server.storage.usage import nbytes_for_agents, nbytes_taken
from isthmus.snapshot import Store
from isthmus.units import format_nbytes

_COUNTED_EVERY_S = 1.0
"""Seconds for which a count that reached the limit is believed: it may take long to make one."""


@dataclass
class _Taken:
    """Bytes of one owner's agents."""

    nbytes: int
    most: int
    """Half of what the disk had for agents when they were counted: for keys without a limit."""
    at: float = field(default_factory=time.monotonic)


class Allowances:
    """See the module. Used by one event loop. `records` gives all agents that there are."""

    def __init__(
        self, store: Store, records: Callable[[], Iterable[Record]], threads: Threads
    ) -> None:
        self._store = store
        self._records = records
        self._threads = threads
        self._taken: dict[str, _Taken] = {}
        self._counting = asyncio.Lock()
        self._n_making: Counter[str] = Counter()
        """Agents that are no records yet, by their owner."""

    @contextlib.contextmanager
    def making(self, key: Key | None) -> Iterator[None]:
        """One more agent of a key, until it is a record. HttpError 429 if it may have no more."""
        if key is None or key.limits.agents is None:
            yield
            return
        mine = [it for it in self._records() if it.owner == key.name]
        n_owned = sum(record.kind == "agent" for record in mine)
        if n_owned + self._n_making[key.name] >= key.limits.agents:
            said = f"this key allows {key.limits.agents} agents: delete one first"
            raise HttpError(429, said, code="too_many_agents", kind="insufficient_quota")
        self._n_making[key.name] += 1
        try:
            yield
        finally:
            self._n_making[key.name] -= 1

    async def require_disk(self, key: Key | None) -> None:
        """HttpError 429 if the agents of a key take as much of the disk as they may."""
        if key is None:
            return
        taken = self._taken.get(key.name)
        if taken is None or (_is_full(key, taken) and self._is_old(taken)):
            taken = await self._count(key.name)
        if _is_full(key, taken):
            most, has = format_nbytes(_most(key, taken)), format_nbytes(taken.nbytes)
            raise HttpError(
                429,
                f"the agents and responses of this key take {has} of the disk, and may take {most}:"
                " delete some of them first",
                code="disk_quota",
                kind="insufficient_quota",
            )

    def wrote(self, owner: str | None, nbytes: int) -> None:
        """Notes what was written with a snapshot."""
        if owner in self._taken:
            self._taken[owner].nbytes += nbytes

    @staticmethod
    def _is_old(taken: _Taken) -> bool:
        return time.monotonic() > taken.at + _COUNTED_EVERY_S

    async def _count(self, owner: str) -> _Taken:
        async with self._counting:
            known = self._taken.get(owner)
            if known is not None and not self._is_old(known):
                return known  # whoever came at the same time has counted
            ids = {record.id for record in self._records() if record.owner == owner}
            found = await self._threads.do(owner, lambda: self._look(ids))
            self._taken[owner] = found
            return found

    def _look(self, ids: set[str]) -> _Taken:
        """Waits for the disk."""
        return _Taken(nbytes_taken(self._store, ids), nbytes_for_agents(self._store) // 2)


def _most(key: Key, taken: _Taken) -> int:
    return taken.most if key.limits.disk is None else key.limits.disk


def _is_full(key: Key, taken: _Taken) -> bool:
    return taken.nbytes >= _most(key, taken)
