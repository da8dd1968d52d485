"""How many responses are kept, and how long: the oldest go first.

What goes are whole agents: a chain of responses, or a conversation. They go by when they were used
last, so a chain that somebody goes on with stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from isthmus.errors import IsthmusError
from isthmus.server.agents.shelf import Shelf
from isthmus.server.http.fair import Owner
from isthmus.server.settings import ServerSettings
from isthmus.server.storage.record import Record

_log = logging.getLogger("isthmus.server")
_LOOKED_EVERY_S = 600.0


class Bounds:
    """See the module. Used by one event loop."""

    def __init__(self, shelf: Shelf, settings: ServerSettings) -> None:
        self._shelf = shelf
        self._settings = settings
        self._owners: set[Owner] = set()
        """Who has got more since the last look."""
        self._changed = asyncio.Event()

    def note(self, owner: Owner) -> None:
        """An owner has got one more."""
        self._owners.add(owner)
        self._changed.set()

    async def keep(self) -> None:
        """Removes what is too much or too old, until it is cancelled."""
        due = 0.0
        while True:
            if time.monotonic() >= due:
                await self.remove_old(time.time())
                self._owners.update(it.owner for it in self._responses())
                due = time.monotonic() + _LOOKED_EVERY_S
            while self._owners:
                await self.remove_excess(self._owners.pop())
                await asyncio.sleep(0)  # a look takes as long as there are responses of all owners
            self._changed.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), due - time.monotonic())

    async def remove_old(self, now: float) -> None:
        """Removes chains that nobody went on with for as long as they are kept."""
        since = now - self._settings.responses_kept_s
        old = [it for it in self._responses() if it.kind == "response" and _used(it) < since]
        for record in old:
            await self._remove(record)

    async def remove_excess(self, owner: Owner) -> None:
        """Removes an owner's oldest until it has as many responses as it may have."""
        mine = sorted((it for it in self._responses() if it.owner == owner), key=_used)
        left = sum(it.n_own for it in mine)
        for record in mine[:-1]:
            if left <= self._settings.responses:
                return
            if await self._remove(record):
                left -= record.n_own

    def _responses(self) -> list[Record]:
        return [it for it in self._shelf.records.values() if it.kind != "agent"]

    async def _remove(self, record: Record) -> bool:
        """Whether an agent was removed: one that is used is not, nor one that was used since."""
        known = self._shelf.records.get(record.id)
        if known != record or self._shelf.is_held(record.id):
            return False
        try:
            return await self._shelf.delete(record.id, record)
        except IsthmusError as error:
            _log.error("response agent %s is not removed: %s", record.id, error)
            return False


def _used(record: Record) -> float:
    return record.used or record.created
