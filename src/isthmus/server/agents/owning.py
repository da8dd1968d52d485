"""Which server owns an agent, for servers that share a URL. In a folder there is nothing to ask.

An agent is acquired when it is first used, and released once it is out of memory: then any server
may have it. `records` are what the shelf knows of all agents; here they become what the store says.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

import msgspec

from isthmus.errors import StorageError
from isthmus.server.http.entry import current
from isthmus.server.http.errors import HttpError
from isthmus.server.http.fair import Threads
from isthmus.server.storage.home import Sharing
from isthmus.server.storage.node import Peer
from isthmus.server.storage.record import Record

_log = logging.getLogger("isthmus.server")
_T = TypeVar("_T")


class AnotherAgent(Exception):
    """A request that is answered by the owner of another agent than its path names."""

    def __init__(self, agent: str, path: str, body: bytes) -> None:
        super().__init__(path)
        self.agent, self.path, self.body = agent, path, body
        """What that owner is asked."""


class Owning:
    """See the module. Used by one event loop; `threads` wait for the store."""

    def __init__(
        self, sharing: Sharing | None, records: dict[str, Record], threads: Threads
    ) -> None:
        self.sharing = sharing
        self.kind = "" if sharing is None else sharing.computes.kind
        """Of what this server computes with."""
        self._records = records
        self._threads = threads
        self._refreshing = asyncio.Lock()
        self._releasing: set[asyncio.Task[None]] = set()

    async def acquire(self, id_: str) -> bool:
        """Owns an agent; says whether that is new, so that what is in memory may be old.

        StorageError if another server owns it, also SnapshotNotFound, SnapshotInvalid.
        """
        sharing = self.sharing
        if sharing is None or sharing.owns(id_):
            return False
        self._records[id_] = await self._do(lambda: sharing.acquire(id_))
        return True

    def knows(self, id_: str) -> bool:
        """Whether anything is known of an agent."""
        return id_ in self._records

    async def look(self, id_: str) -> Peer | None:
        """The other server that owns an agent; None if this one does, or may. Unless it does, the
        record is read anew. SnapshotInvalid, StorageError."""
        sharing = self.sharing
        if sharing is None or sharing.owns(id_):
            return None
        found, peer = await self._do(lambda: sharing.look(id_))
        if found is not None:
            self._records[id_] = found
        elif not sharing.owns(id_):
            self._records.pop(id_, None)
        return peer

    async def equal(self, id_: str) -> Peer | None:
        """The other server that is to own an agent which nobody owns, as it must be computed there;
        None if this one may. HttpError 503 if no server that lives computes alike."""
        sharing, record = self.sharing, self._records.get(id_)
        if sharing is None or record is None or record.require != "exact":
            return None
        if record.made_on in ("", self.kind):
            return None
        for peer in await self._do(sharing.peers):
            if peer.address and peer.computes.kind == record.made_on:
                return peer
        said = (
            f"agent {id_} requires exact, and no server that lives computes as the one that did "
            "its last message: begin such a server, or fork it with another require"
        )
        raise HttpError(503, said, code="no_equal", retry_s=1)

    async def refresh(self) -> None:
        """Has all records be what they are now; they stay what they were if the store is out of
        reach."""
        sharing = self.sharing
        if sharing is None:
            return
        async with self._refreshing:
            try:
                found = {it.id: it for it in await self._do(sharing.refresh)}
            except StorageError as error:
                _log.warning("agents of other servers may be missing: %s", error)
                return
            for id_ in self._records.keys() - found.keys():
                if not sharing.owns(id_):
                    del self._records[id_]
            others = {id_: it for id_, it in found.items() if not sharing.owns(id_)}
            self._records.update(others)

    def let_go(self, id_: str, lock: asyncio.Lock, is_live: Callable[[], bool]) -> None:
        """Releases an agent, unless somebody holds it by then and has it in memory."""
        sharing = self.sharing
        if sharing is None or not sharing.owns(id_):
            return

        async def release() -> None:
            async with lock:
                if not is_live():
                    await self._do(lambda: sharing.release(id_))

        task = asyncio.ensure_future(release())
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)

    async def close(self) -> None:
        """Waits for what is being released."""
        await asyncio.gather(*self._releasing, return_exceptions=True)

    async def _do(self, what: Callable[[], _T]) -> _T:
        return await self._threads.do(current().owner, what)


def require_readmitted(record: Record) -> None:
    """HttpError 409 for an agent that is quarantined."""
    if record.quarantined:
        said = (
            f"agent {record.id} is quarantined: {record.deaths} servers ended one after another "
            "while they had it in use. It can be read and deleted; POST "
            f"/v1/agents/{record.id}/readmit lets it be used again"
        )
        raise HttpError(409, said, code="quarantined")


def owned(record: Record) -> Record:
    """A record as that of whoever asks."""
    return msgspec.structs.replace(record, owner=current().owner)
