"""Agents that outlive the server: a record and a snapshot of each message, on the disk.

::

    DATA/agents/ID.json     what the agent is, its turns, and which snapshot is its last
    DATA/store/             a store of snapshots, ID.POSITION, that share their chunks
    DATA/guests/SHA256.wasm guests that clients brought

A message is done when the record names its snapshot, and only then its caller hears so. Whatever
ends before (an error, a caller who leaves, kill -9) has not happened: the agent's next message
begins at the snapshot that the record names.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from isthmus.actor import Actor
from isthmus.config import Limits
from isthmus.errors import GuestInvalid, SettingsError, SnapshotNotFound
from isthmus.model import Model
from isthmus.runtime import Runtime, bundled_guests
from isthmus.server.settings import ServerSettings
from isthmus.snapshot import Snapshot, Store
from isthmus.snapshot.atomic import AtomicFile

_ID = re.compile(r"[a-z0-9]{12}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_KEPT_TURNS = 256
"""Snapshots of an agent's last turns; older ones are deleted, and their texts kept."""


class Turn(Struct, frozen=True, kw_only=True):
    """One message and its answer."""

    position: int
    """The agent's messages until then; 1 for the first."""
    at: float
    """When it was done, in seconds since 1970."""
    input: str
    output: str
    n_tokens: int
    seconds: float
    nbytes_written: int
    """By its snapshot."""


class Origin(Struct, frozen=True, kw_only=True):
    """Whose fork an agent is."""

    id: str
    position: int


class Record(Struct, frozen=True, kw_only=True):
    """All that is known of an agent without its memory."""

    id: str
    name: str
    guest: str
    """A bundled guest's name, or the hash of one that was brought."""
    models: dict[str, str]
    """What it was given: the server's model by the name that the guest knows."""
    args: dict[str, str]
    limits: dict[str, Any]
    seed: int
    created: float
    origin: Origin | None = None
    position: int = 0
    turns: tuple[Turn, ...] = ()

    @property
    def snapshot(self) -> str:
        """The name of its last snapshot."""
        return name_of(self.id, self.position)


def name_of(id_: str, position: int) -> str:
    """Of a snapshot in the store."""
    return f"{id_}.{position}"


class Held:
    """An agent that its holder alone uses."""

    def __init__(self, shelf: Shelf, record: Record) -> None:
        self._shelf = shelf
        self._commit: asyncio.Task[Turn] | None = None
        self.record = record

    async def actor(self) -> Actor:
        """In memory, brought back if it is not."""
        return await self._shelf.live(self.record)

    async def commit(self, actor: Actor, turn: Turn) -> Turn:
        """Saves the actor and then the record: the turn is done.

        Once begun it goes on, also if the caller is cancelled, and nobody else holds the agent
        before it has ended.
        """
        self._commit = asyncio.ensure_future(self._write(actor, turn))
        return await asyncio.shield(self._commit)

    def when_free(self, release: Callable[[], None]) -> None:
        """Calls `release` now, or as soon as what is being saved is saved."""
        if self._commit is None or self._commit.done():
            release()
        else:
            self._commit.add_done_callback(lambda _: release())

    async def _write(self, actor: Actor, turn: Turn) -> Turn:
        name = name_of(self.record.id, turn.position)
        saved = await asyncio.to_thread(actor.snapshot, self._shelf.store, name=name)
        turn = msgspec.structs.replace(turn, nbytes_written=saved.nbytes_written)
        turns = (*self.record.turns, turn)
        record = msgspec.structs.replace(self.record, position=turn.position, turns=turns)
        await asyncio.to_thread(self._shelf.write, record)
        self.record = record
        return turn

    async def discard(self) -> None:
        """What is in memory is not what the record says: it begins anew at the next use."""
        await self._shelf.forget(self.record.id)


class Shelf:
    """See the module. Used by one event loop."""

    def __init__(
        self, runtime: Runtime, models: dict[str, Model], settings: ServerSettings
    ) -> None:
        self.runtime = runtime
        self.models = models
        self._settings = settings
        data = settings.data
        self._agents, self._guests = data / "agents", data / "guests"
        for folder in (self._agents, self._guests):
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise SettingsError(f"cannot make {folder}: {error.strerror}") from None
        self._lock = _lock(data)
        self.store = Store(data / "store")
        self._live: OrderedDict[str, Actor] = OrderedDict()
        """Actors in memory, the one used last at the end."""
        self._locks: dict[str, asyncio.Lock] = {}
        self.records = {record.id: record for record in self._read()}

    # ------------------------------------------------------------------ one agent

    def record(self, id_: str) -> Record:
        """What is known of an agent. SnapshotNotFound."""
        found = self.records.get(id_)
        if found is None:
            raise SnapshotNotFound(f"there is no agent {id_}")
        return found

    @contextlib.asynccontextmanager
    async def holding(self, id_: str) -> AsyncIterator[Held]:
        """An agent for one user alone; others wait. SnapshotNotFound."""
        self.record(id_)
        lock = self._locks.setdefault(id_, asyncio.Lock())
        await lock.acquire()
        held = None
        try:
            held = Held(self, self.record(id_))
            yield held
        finally:
            if held is None:
                lock.release()
            else:
                held.when_free(lock.release)

    async def live(self, record: Record) -> Actor:
        """The actor, brought back from its last snapshot if it is not in memory."""
        actor = self._live.get(record.id)
        if actor is None or actor.state == "closed":
            actor = await asyncio.to_thread(self._restore, record, record.position)
            self._live[record.id] = actor
        self._live.move_to_end(record.id)
        await self._close_idle()
        return actor

    async def create(
        self,
        name: str,
        guest: str,
        models: dict[str, str],
        args: dict[str, str],
        limits: dict[str, Any],
        seed: int | None,
    ) -> Record:
        """A new agent, saved before anybody hears of it."""
        record = Record(
            id=_new_id(),
            name=name,
            guest=guest,
            models=models,
            args=args,
            limits=limits,
            seed=secrets.randbits(63) if seed is None else seed,
            created=time.time(),
        )
        return await self._settle(record, lambda: self._spawn(record))

    async def fork(self, source: Record, position: int, name: str) -> Record:
        """An agent that is what another one was at a position."""
        record = msgspec.structs.replace(
            source,
            id=_new_id(),
            name=name,
            created=time.time(),
            origin=Origin(id=source.id, position=position),
            position=position,
            turns=tuple(turn for turn in source.turns if turn.position <= position),
        )
        return await self._settle(record, lambda: self._restore(source, position))

    async def delete(self, id_: str) -> None:
        """Removes an agent, and what only its snapshots used."""
        async with self.holding(id_):
            await self.forget(id_)
            await asyncio.to_thread(self._remove, id_)
        self._locks.pop(id_, None)

    async def forget(self, id_: str) -> None:
        """Gives its memory back; it is on the disk."""
        actor = self._live.pop(id_, None)
        if actor is not None:
            await asyncio.to_thread(actor.close)

    def snapshot(self, record: Record, position: int) -> Snapshot:
        """One of an agent's snapshots. SnapshotNotFound."""
        return self.store.open(name_of(record.id, position))

    # ------------------------------------------------------------------ guests

    def guests(self) -> dict[str, str]:
        """Bundled guests by name, and those that were brought by hash."""
        brought = {path.stem: "brought" for path in sorted(self._guests.glob("*.wasm"))}
        return {**dict.fromkeys(bundled_guests(), "bundled"), **brought}

    def add_guest(self, wasm: bytes) -> str:
        """Keeps a guest that compiles; returns its hash. GuestInvalid."""
        self.runtime.load_guest(wasm)
        digest = hashlib.sha256(wasm).hexdigest()
        with AtomicFile(self._guests / f"{digest}.wasm") as file:
            file.write(wasm, 0)
            file.commit(len(wasm))
        return digest

    def load_guest(self, name: str) -> Any:
        """A compiled guest by name or hash. GuestInvalid."""
        if name in bundled_guests():
            return self.runtime.load_guest(name)
        path = self._guests / f"{name}.wasm"
        if not _SHA256.fullmatch(name) or not path.exists():
            known = ", ".join(bundled_guests())
            raise GuestInvalid(f"there is no guest {name!r}: give {known}, or bring one")
        return self.runtime.load_guest(path.read_bytes())

    # ------------------------------------------------------------------ the disk

    def write(self, record: Record) -> None:
        """The moment at which something has happened."""
        data = msgspec.json.format(msgspec.json.encode(record), indent=1)
        with AtomicFile(self._agents / f"{record.id}.json") as file:
            file.write(data, 0)
            file.commit(len(data))
        self.records[record.id] = record
        if len(record.turns) > _KEPT_TURNS:
            old = record.turns[-_KEPT_TURNS - 1].position
            self._delete_snapshot(name_of(record.id, old))

    async def close(self) -> None:
        """Gives all memory back; everything is on the disk already."""
        for id_ in list(self._live):
            await self.forget(id_)
        os.close(self._lock)

    def _read(self) -> list[Record]:
        """The records on the disk. What belongs to none of them never happened, and is removed."""
        decoder = msgspec.json.Decoder(Record)
        records = []
        for path in sorted(self._agents.glob("*.json")):
            try:
                record = decoder.decode(path.read_bytes())
            except (OSError, msgspec.DecodeError) as error:
                raise SettingsError(f"{path} is damaged: {error}") from None
            if not _ID.fullmatch(record.id) or path.stem != record.id:
                raise SettingsError(f"{path} is of another agent: {record.id}")
            records.append(record)
        done = {record.id: record.position for record in records}
        undone = [name for name in self.store.names() if not _is_done(name, done)]
        for name in undone:
            self._delete_snapshot(name)
        if undone:
            self.store.gc()
        return records

    def _remove(self, id_: str) -> None:
        (self._agents / f"{id_}.json").unlink(missing_ok=True)
        del self.records[id_]
        for name in self.store.names():
            if name.startswith(f"{id_}."):
                self._delete_snapshot(name)
        self.store.gc()

    def _delete_snapshot(self, name: str) -> None:
        with contextlib.suppress(SnapshotNotFound):
            self.store.delete(name)

    # ------------------------------------------------------------------ actors

    async def _settle(self, record: Record, make: Callable[[], Actor]) -> Record:
        actor = await asyncio.to_thread(make)
        try:
            await asyncio.to_thread(actor.snapshot, self.store, name=record.snapshot)
            await asyncio.to_thread(self.write, record)
        except BaseException:
            await asyncio.to_thread(actor.close)
            raise
        self._live[record.id] = actor
        await self._close_idle()
        return record

    def _given(self, record: Record) -> dict[str, Model]:
        missing = [name for name in record.models.values() if name not in self.models]
        if missing:
            raise SettingsError(
                f"agent {record.id} needs the model {missing[0]}, which this server does not have"
            )
        return {name: self.models[model] for name, model in record.models.items()}

    def _spawn(self, record: Record) -> Actor:
        return self.runtime.spawn(
            self.load_guest(record.guest),
            models=self._given(record),
            args=record.args,
            limits=Limits(**record.limits),
            seed=record.seed,
        )

    def _restore(self, record: Record, position: int) -> Actor:
        path = self.store.path(name_of(record.id, position))
        return self.runtime.restore(path, models=self._given(record))

    async def _close_idle(self) -> None:
        """Keeps the ones used last in memory."""
        for id_ in list(self._live):
            if len(self._live) <= self._settings.live:
                return
            lock = self._locks.get(id_)
            if lock is None or not lock.locked():
                await self.forget(id_)


def _is_done(name: str, done: dict[str, int]) -> bool:
    """Whether a snapshot is of a turn that happened."""
    id_, _, position = name.partition(".")
    return position.isdecimal() and int(position) <= done.get(id_, -1)


def _lock(data: Path) -> int:
    """The data folder's lock, which ends with this process. SettingsError where another has it."""
    fd = os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise SettingsError(
            f"another server uses {data}: give this one --data of its own"
        ) from None
    return fd


def _new_id() -> str:
    alphabet = "abcdefghijklmnopqrstuvwxyz0123456789"
    return "".join(secrets.choice(alphabet) for _ in range(12))
