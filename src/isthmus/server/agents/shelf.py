"""Agents that outlive the server: a record and a snapshot of each message, where `Home` keeps them.

A message is done when the record names its snapshot, and only then its caller hears so. Whatever
ends before (an error, a caller who leaves, kill -9) has not happened: the agent's next message
begins at the snapshot that the record names.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec

from isthmus.actor import Actor
from isthmus.config import Level, Limits
from isthmus.errors import (
    SettingsError,
    SnapshotError,
    SnapshotNotFound,
)
from isthmus.model import Model
from isthmus.model.checks import nothing
from isthmus.server.agents.adopting import record_of
from isthmus.server.agents.allowance import Allowances
from isthmus.server.agents.guests import BroughtGuests
from isthmus.server.agents.held import Held
from isthmus.server.agents.loading import Guests
from isthmus.server.agents.owning import Owning, owned, require_readmitted
from isthmus.server.agents.tools import AgentTools
from isthmus.server.http.entry import current
from isthmus.server.http.fair import Threads
from isthmus.server.models.models import Models
from isthmus.server.settings import ServerSettings
from isthmus.server.storage.home import open_home
from isthmus.server.storage.record import Origin, Record, Turn, midway_name, name_of, new_id
from isthmus.snapshot import Snapshot

_log = logging.getLogger("isthmus.server")
_AT_A_TIME = 32
"""Threads that wait for the disk or the network. Requests without an agent need none of them."""
_MADE_AT_A_TIME = 16
"""Threads that wait for new agents to begin. A guest that somebody brought may hold each of them
for `Capacity.initialize_s`; whatever else needs a thread has others."""
_MAX_TO_MAKE = 256
"""New agents that begin, or wait to; further ones are refused."""
_T = TypeVar("_T")


class Shelf:
    """See the module. Used by one event loop."""

    def __init__(
        self, models: Models, settings: ServerSettings, tools: AgentTools | None = None
    ) -> None:
        self.runtime = models.runtime
        self.tools = tools or AgentTools(None)
        self.models = models
        models.when_left.append(self._drop_closed)
        self._settings = settings
        self._home = open_home(settings, models.runtime)
        self.store = self._home.store
        self.folder = self.store.folder.parent
        """On the local disk, and nobody else's."""
        self._threads = Threads(_AT_A_TIME, "isthmus-shelf")
        self._makers = Threads(_MADE_AT_A_TIME, "isthmus-making", waiting=_MAX_TO_MAKE)
        self._live: OrderedDict[str, Actor] = OrderedDict()
        """Actors in memory, the one used last at the end."""
        self._locks: dict[str, asyncio.Lock] = {}
        try:
            self.records = {record.id: record for record in self._home.records()}
        except BaseException:
            self._home.close()
            raise
        self.owning = Owning(self._home.sharing, self.records, self._threads)
        self.allowances = Allowances(self.store, self.records.values, self._threads)
        brought = BroughtGuests(
            self._home, self.folder / "guests.json", settings, self._all_records
        )
        self.guests = Guests(self.runtime, brought)

    def _all_records(self) -> list[Record]:
        """Those of all servers. It may wait for the store."""
        sharing = self._home.sharing
        return list(self.records.values()) if sharing is None else sharing.refresh()

    # ------------------------------------------------------------------ one agent

    def record(self, id_: str) -> Record:
        """What is known of an agent. SnapshotNotFound."""
        found = self.records.get(id_)
        if found is None or not self._may_see(found):
            raise SnapshotNotFound(f"there is no agent {id_}")
        return found

    def visible(self) -> dict[str, Record]:
        """The agents that exist for whoever asks, by id, without those that responses are."""
        seen = {id_: it for id_, it in self.records.items() if it.kind == "agent"}
        return {id_: it for id_, it in seen.items() if self._may_see(it)}

    def lock_of(self, id_: str) -> asyncio.Lock:
        """Held by whoever uses an agent."""
        return self._locks.setdefault(id_, asyncio.Lock())

    def is_held(self, id_: str) -> bool:
        """Whether somebody uses an agent at this moment."""
        return (lock := self._locks.get(id_)) is not None and lock.locked()

    def _may_see(self, record: Record) -> bool:
        owner = current().owner
        return self._settings.share_agents or owner is None or record.owner in (None, owner)

    async def turns(self, record: Record) -> list[Turn]:
        """An agent's turns until where the record is, as far as they are kept."""
        return await self.in_thread(lambda: self._home.turns(record))

    @contextlib.asynccontextmanager
    async def holding(self, id_: str) -> AsyncIterator[Held]:
        """An agent for one user alone; others wait. SnapshotNotFound."""
        self.record(id_)
        lock = self.lock_of(id_)
        await lock.acquire()
        held = None
        try:
            if await self.owning.acquire(id_):
                await self.forget(id_)  # what it was when this server owned it before
            held = Held(self, self.record(id_))
            yield held
        finally:
            if held is None:
                lock.release()
            else:
                held.when_free(lock.release)
            if id_ in self.records and id_ not in self._live:
                self._let_go(id_)

    def _let_go(self, id_: str) -> None:
        """Lets any server have an agent that is not in memory, beside other work."""
        self.owning.let_go(id_, self.lock_of(id_), lambda: id_ in self._live)

    def is_live(self, id_: str) -> bool:
        """Whether an agent is in memory."""
        return id_ in self._live and self._live[id_].state != "closed"

    async def live(self, record: Record, *, midway: bool = False) -> Actor:
        """The actor, brought back from its last snapshot if it is not in memory; or `midway`, from
        that of the middle of its answer."""
        given = await self.given(record)
        actor = self._live.get(record.id)
        if actor is None or actor.state == "closed":
            position = None if midway else record.position
            restore = partial(self._restore, record, position, given, record.id)
            actor = await self.in_thread(restore)
            self._live[record.id] = actor
        self._live.move_to_end(record.id)
        await self._close_idle()
        return actor

    async def create(self, record: Record) -> Record:
        """A new agent, as its record says, saved before anybody hears of it."""
        self.tools.require(record.tools)
        given, record = await self.given(record), owned(record)
        return await self._settle(record, lambda: self._spawn(record, given), self.made)

    async def fork(self, source: Record, position: int, changes: dict[str, Any]) -> Record:
        """An agent that is what another one was at a position. `changes` are its name and, where
        they differ, its models, which compute the tokens anew, and args."""
        self.tools.require(source.tools)
        record = msgspec.structs.replace(
            source,
            id=new_id(),
            created=time.time(),
            deaths=0,
            midway=None,
            failed=None,
            origin=Origin(id=source.id, position=position),
            position=position,
            **changes,
        )
        turns = [turn for turn in await self.turns(source) if turn.position <= position]
        require = record.require if record.models == source.models else "replayed"
        how: dict[str, Any] = {"require": require}
        how |= {} if record.args == source.args else {"args": record.args}
        given = await self.given(record)
        make = partial(self._restore, source, position, given, record.id, **how)
        return await self._settle(record, make, self.in_thread, turns)

    async def adopt(
        self, name: str, snapshot: Snapshot, models: dict[str, str], require: Level
    ) -> Record:
        """An agent that is what a snapshot from elsewhere holds. Its positions begin at 0.

        SnapshotError where that cannot be restored as exactly as `require` says. SnapshotInvalid if
        its seed is none.
        """
        record = record_of(name, snapshot, models, self._settings.output_nbytes)
        self.tools.require(record.tools)
        given = await self.given(record)
        restore = partial(
            self.runtime.restore,
            snapshot.path,
            models=given,
            tools=self.tools.of(owned(record)),
            require=require,
            limits=Limits(**record.limits),
            label=record.id,
        )
        return await self._settle(record, restore, self.made)

    async def delete(self, id_: str, known: Record | None = None) -> bool:
        """Removes an agent, if it still is what is `known`; says whether it did. What only its
        snapshots used goes later."""
        async with self.holding(id_) as held:
            if known is not None and held.record != known:
                return False
            await self.forget(id_)
            await self.in_thread(lambda: self._home.remove(self.record(id_)))
            del self.records[id_]
        self._locks.pop(id_, None)
        return True

    async def forget(self, id_: str, first: Callable[[], None] = nothing) -> None:
        """Gives its memory back; it is on the disk. `first` is called in a thread before. Once
        begun it goes on, also if the caller is cancelled."""

        def end() -> None:
            with contextlib.ExitStack() as stack:
                if actor is not None:
                    stack.callback(actor.close)
                first()

        actor = self._live.pop(id_, None)
        if actor is not None or first is not nothing:
            await asyncio.shield(asyncio.ensure_future(self.in_thread(end)))

    async def in_thread(self, what: Callable[[], _T]) -> _T:
        """Does what waits for the disk or the network."""
        return await self._threads.do(current().owner, what)

    def bring(self, record: Record, position: int) -> None:
        """Has one of an agent's snapshots in `store`, to be restored. SnapshotNotFound."""
        self._home.bring(record, position)

    def snapshot(self, record: Record, position: int) -> Snapshot:
        """One of an agent's snapshots, to be looked at. SnapshotNotFound."""
        self._home.bring(record, position, memory=False)
        return self.store.open(name_of(record.id, position))

    # ------------------------------------------------------------------ the home

    def write(
        self, record: Record, turns: Sequence[Turn] = (), *, is_new: bool = False,
        is_midway: bool = False,
    ) -> None:  # fmt: skip
        """The moment at which something has happened. `is_midway`: the answer was saved that the
        record is in the middle of."""
        if turns or is_new or is_midway:
            record = msgspec.structs.replace(record, deaths=0, made_on=self.owning.kind)
        if is_midway:
            self._home.commit_midway(record)
        else:
            self._home.commit(record, turns, is_new=is_new)
        self.records[record.id] = record

    def wait(self) -> None:
        """Returns once all is removed that deleted agents have left."""
        self._home.wait()

    async def close(self) -> None:
        """Gives all memory back; everything is kept already. Agents that begin are cut off."""
        await self.in_thread(self.runtime.end_beginnings)
        for id_ in list(self._live):
            await self.forget(id_)
        await self.owning.close()
        await asyncio.to_thread(self._makers.close)
        await asyncio.to_thread(self._threads.close)  # nothing is under way then
        await asyncio.to_thread(self._home.close)

    # ------------------------------------------------------------------ actors

    async def _settle(
        self,
        record: Record,
        make: Callable[[], Actor],
        run: Callable[[Callable[[], Actor]], Awaitable[Actor]],
        turns: Sequence[Turn] = (),
    ) -> Record:
        """Makes an actor by `run` and saves it. `run` is `made` if its guest may run meanwhile."""
        record = owned(record)
        await self.allowances.require_disk(current().key)
        with self.allowances.making(current().key):
            return await self.keep(record, await run(make), turns)

    async def keep(self, record: Record, actor: Actor, turns: Sequence[Turn] = ()) -> Record:
        """A new agent, which is what an actor is. That is closed if it cannot be saved."""
        try:
            saved = await self.in_thread(lambda: actor.snapshot(self.store, name=record.snapshot))
            self.allowances.wrote(record.owner, saved.nbytes_written)
            await self.in_thread(lambda: self.write(record, turns, is_new=True))
        except BaseException:
            await self.in_thread(actor.close)
            raise
        self._live[record.id] = actor
        await self._close_idle()
        return self.record(record.id)

    async def start(self, record: Record, source: Record | None = None, position: int = 0) -> Actor:
        """An actor for an agent that is not kept yet: what another agent was at a position, or a
        fresh one, also if that one's snapshot cannot be used. HttpError 409 if quarantined."""
        given = await self.given(record)
        if source is not None:
            try:
                return await self.in_thread(
                    lambda: self._restore(source, position, given, record.id)
                )
            except SnapshotError as error:
                _log.info("%s begins afresh: %s", record.id, error)
        return await self.made(lambda: self._spawn(record, given))

    async def renew(self, record: Record) -> Actor:
        """A fresh actor in place of what an agent was; its holder saves it with the next turn."""
        require_readmitted(record)
        given = await self.given(record)
        await self.forget(record.id)
        actor = await self.made(lambda: self._spawn(record, given))
        self._live[record.id] = actor
        return actor

    async def made(self, make: Callable[[], _T]) -> _T:
        """Compiles a guest, or makes an actor whose guest may run meanwhile.

        Overloaded if too many wait to begin.
        """
        return await self._makers.do(current().owner, make)

    async def given(self, record: Record) -> dict[str, Model]:
        """The models of an agent, in memory until the current request has ended.

        Raises SettingsError for one that this server does not have, and as `Models.use_all`.
        """
        for name in record.models.values():
            if self.models.files.find(name) is None:
                raise SettingsError(
                    f"agent {record.id} needs the model {name}, which this server does not have"
                )
        served = await self.models.use_all(list(record.models.values()))
        return {name: it.model for name, it in zip(record.models, served, strict=True)}

    def _spawn(self, record: Record, given: dict[str, Model]) -> Actor:
        guest = self.guests.load(record.guest)
        return self.runtime.spawn(
            guest,
            models=given,
            tools=self.tools.of(record),
            args=() if guest.is_command else self.guests.options(record.guest, record.args),
            argv=record.argv,
            environ=record.args if guest.is_command else None,
            limits=Limits(**record.limits),
            seed=record.seed,
            label=record.id,
        )

    def _restore(
        self, record: Record, position: int | None, given: dict[str, Model], label: str, **how: Any
    ) -> Actor:
        """What an agent was at a position; by None in the middle of its answer, exactly or not."""
        require_readmitted(record)
        if position is None:
            how.setdefault("require", "exact")
            self._home.bring_midway(record)
        else:
            self.bring(record, position)
        name = midway_name(record) if position is None else name_of(record.id, position)
        path = self.store.path(name or "")
        how = self.guests.restoring(record, how)
        return self.runtime.restore(
            path, models=given, tools=self.tools.of(record), label=label or record.id, **how
        )

    def _drop_closed(self) -> None:
        """Forgets actors whose models have left; they are on the disk."""
        for id_, actor in list(self._live.items()):
            if actor.state == "closed":
                del self._live[id_]

    async def _close_idle(self) -> None:
        """Keeps the ones used last in memory."""
        for id_ in list(self._live):
            if len(self._live) <= self._settings.live:
                return
            lock = self._locks.get(id_)
            if lock is None or not lock.locked():
                await self.forget(id_)
                self._let_go(id_)
