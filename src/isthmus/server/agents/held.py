"""An agent that its holder alone uses.

::

    note_midway ──► save_midway … ──► commit        an answer that outlives its server
                                  └─► note_midway(None)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from isthmus.actor import Actor
from isthmus.model.checks import nothing
from isthmus.server.http.entry import current
from isthmus.server.storage.record import Failure, Midway, Record, Turn, midway_name, name_of

if TYPE_CHECKING:
    from isthmus.server.agents.shelf import Shelf


class Held:
    """An agent that its holder alone uses."""

    def __init__(self, shelf: Shelf, record: Record) -> None:
        self._shelf = shelf
        self._commit: asyncio.Task[Turn] | None = None
        self.record = record
        """What is known of the agent; its holder may change what the next turn is saved with."""

    async def actor(self) -> Actor:
        """In memory, brought back if it is not."""
        return await self._shelf.live(self.record)

    async def commit(
        self, actor: Actor, turn: Turn, take_back: Callable[[], None] = nothing
    ) -> Turn:
        """Saves the actor and then the record: the turn is done.

        Once begun it goes on, also if the caller is cancelled, and nobody else holds the agent
        before it has ended. `take_back` is called in a thread if the turn cannot be saved.
        """
        self._commit = asyncio.ensure_future(self._write(actor, turn, take_back))
        current().work_until(self._commit)
        return await asyncio.shield(self._commit)

    async def midway_actor(self) -> Actor:
        """In memory, in the middle of the answer that its record says. SnapshotError, also if it
        would not go on exactly."""
        await self._shelf.forget(self.record.id)
        return await self._shelf.live(self.record, midway=True)

    async def note_midway(self, midway: Midway | None, failed: Failure | None = None) -> None:
        """Keeps what answer the agent is in the middle of, without a snapshot; None for no longer
        any. `failed` is what has become of it then, if it is nothing."""
        record = msgspec.structs.replace(self.record, midway=midway)
        if failed is not None:
            record = msgspec.structs.replace(record, failed=failed)
        await self._keep(record)

    async def save_midway(self, actor: Actor, midway: Midway) -> bool:
        """Saves the answer that the actor is in the middle of, at its next token; False if it has
        ended by then. ActorBusy while a tool works for it."""
        midway = msgspec.structs.replace(midway, saved=True, n_tries=0, files=())
        record = msgspec.structs.replace(self.record, midway=midway)
        name, shelf = midway_name(record) or "", self._shelf
        saved = await shelf.in_thread(lambda: actor.try_checkpoint(shelf.store, name))
        if saved is not None:
            shelf.allowances.wrote(record.owner, saved.nbytes_written)
            await self._keep(record, is_midway=True)
        return saved is not None

    async def _keep(self, record: Record, *, is_midway: bool = False) -> None:
        """Writes the record. Once begun it goes on, and nobody else holds the agent before."""
        write = partial(self._shelf.write, record, is_midway=is_midway)
        writing = asyncio.ensure_future(self._shelf.in_thread(write))
        current().work_until(writing)
        try:
            await asyncio.shield(writing)
        finally:
            await asyncio.wait([writing])
            if not writing.exception():
                self.record = self._shelf.records[record.id]

    def when_free(self, release: Callable[[], None]) -> None:
        """Calls `release` now, or as soon as what is being saved is saved."""
        if self._commit is None or self._commit.done():
            release()
        else:
            self._commit.add_done_callback(lambda _: release())

    async def _write(self, actor: Actor, turn: Turn, take_back: Callable[[], None]) -> Turn:
        try:
            return await self._save(actor, turn)
        except BaseException:
            await self._shelf.in_thread(take_back)
            raise

    async def _save(self, actor: Actor, turn: Turn) -> Turn:
        name = name_of(self.record.id, turn.position)
        shelf = self._shelf
        saved = await shelf.in_thread(lambda: actor.snapshot(shelf.store, name=name))
        shelf.allowances.wrote(self.record.owner, saved.nbytes_written)
        turn = msgspec.structs.replace(turn, nbytes_written=saved.nbytes_written)
        record = msgspec.structs.replace(
            self.record, position=turn.position, used=turn.at, midway=None
        )
        await shelf.in_thread(lambda: shelf.write(record, [turn]))
        self.record = shelf.record(record.id)
        return turn

    async def discard(self, take_back: Callable[[], None] = nothing) -> None:
        """What is in memory is not what the record says: it begins anew at the next use.

        `take_back` is called in a thread, unless a turn was to be saved: then `commit` sees to it.
        """
        await self._shelf.forget(self.record.id, take_back if self._commit is None else nothing)


async def hand_over(shelf: Shelf, id_: str) -> bool:
    """Lets another server have an agent that nobody uses here; says whether it did."""
    sharing = shelf.owning.sharing
    if sharing is None or not sharing.owns(id_) or shelf.is_held(id_):
        return False
    async with shelf.lock_of(id_):
        await shelf.forget(id_)
        await shelf.in_thread(lambda: sharing.release(id_))
    return True
