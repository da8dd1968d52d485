"""Agents in an object store, with a local folder as the working copy.

::

    URL/lease/…                  who may write; see `lease`
    URL/agents/ID.json           the record: which objects the agent is made of
    URL/turns/HOLDER-ID.SHA256   earlier turns, in segments that never change
    URL/snapshots/ID.safetensors manifests, by a snapshot's id
    URL/packs/HOLDER-SHA256.…    chunks, as the cache's store packs them
    URL/guests/HOLDER-SHA256.wasm

Actors are saved into the cache and restored from it, so that their memory is mapped. A commit
uploads the packs that are not there yet, then the manifest, and last the record, in one atomic PUT:
before it the message has not happened. All other objects are named by what is in them and never
change. What no record names is garbage.

A record is written on condition that it is what this server last read or wrote. So a server that
was stopped before that PUT and wakes after another one took over is refused: `lease` fences all
records at a start. Names of packs and guests have the holder's number, so that what a former holder
removes is nothing that a later one made. An agent is removed by an empty record, on the same
condition, and then by removing that.

The cache may be empty or stale: a record tells the ids of its snapshots, a snapshot's id covers its
chunks' hashes, and both are checked when they are fetched.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from isthmus.errors import SnapshotInvalid, SnapshotNotFound, StorageError
from isthmus.server.storage.folder import Folder
from isthmus.server.storage.history import turns_of, with_turns
from isthmus.server.storage.lease import Lease
from isthmus.server.storage.objects import Found, Objects, Version
from isthmus.server.storage.record import (
    FullRecord,
    Record,
    Segment,
    Stored,
    Turn,
    decode,
    encode,
    name_of,
)

_log = logging.getLogger("isthmus.server")
_AT_A_TIME = 8
"""Packs of one agent that are fetched together, and records that are fenced together."""
_TRIES = 8
"""Writes of a record that an older holder may get in before a start is given up."""
_REMOVED = b""
"""The record of an agent that was removed."""


class Mirror:
    """See the module and `Home`. Owns the lease and the cache."""

    def __init__(self, url: str, cache: Path, lease_s: float) -> None:
        self._objects = Objects(url)
        self._cache = Folder(cache, repack=False)
        self.store = self._cache.store
        try:
            self._lease = Lease(self._objects, self._cache.owner(), lease_s)
        except BaseException:
            self._cache.close()
            raise
        self._lock = threading.Condition()
        """Of all below, and of removing garbage: who needs what is being removed waits for that."""
        self._records: dict[str, FullRecord] = {}
        self._versions: dict[str, Version] = {}
        """What each record was when this server last read or wrote it."""
        self._promised: dict[str, set[str]] = {}
        """What records will name whose commit goes on, by agent."""
        self._there: set[str] = set()
        """Objects of packs, snapshots and turns that need not be uploaded."""
        self._uses: Counter[str] = Counter()
        """How many records name each object."""
        self._garbage: set[str] = set()
        """Objects that no record names any more."""
        self._going: set[str] = set()
        """Those of them that are being removed."""
        self._packs: dict[str, str] = {}
        """Of these, the packs' objects, by the name of the pack."""
        self._guests: dict[str, frozenset[str]] = {}
        """The objects that each guest is, by its hash."""

    def records(self) -> list[Record]:
        found = self._objects.find_all("agents")
        records = [self._admit(name, it) for name, it in found.items() if it.data != _REMOVED]
        if self._lease.must_fence:
            with ThreadPoolExecutor(_AT_A_TIME) as pool:
                records = [it for it in pool.map(self._fence, records) if it is not None]
            self._lease.verify()  # a later holder, if there is one, fences after this
            self._lease.note_fenced()
        for record in records:
            self._keep(record)
        self._objects.delete(f"agents/{name}" for name, it in found.items() if it.data == _REMOVED)
        for name in self._objects.names("guests"):
            self._note_guest(name)
        folders = ("packs", "snapshots", "turns")
        for name in (f"{it}/{name}" for it in folders for name in self._objects.names(it)):
            self._note(name)
        self._garbage = self._there - self._uses.keys()
        self._collect()
        brief = [record.brief() for record in records]
        self._cache.sweep(brief)
        return brief

    # ------------------------------------------------------------------ snapshots

    def turns(self, record: Record) -> list[Turn]:
        for last in (False, False, True):
            full = self._record(record.id)
            try:
                turns = turns_of(full, lambda it: self._fetch(_turns(record.id, it)))
            except SnapshotInvalid:  # a message was done meanwhile, and the oldest turns went
                if last or full == self._record(record.id):
                    raise
                continue
            return [turn for turn in turns if turn.position <= record.position]
        raise AssertionError("unreachable")

    def commit(self, record: Record, turns: Sequence[Turn]) -> None:
        self._lease.require()
        saved = self.store.open(record.snapshot)
        known = self._records.get(record.id)
        full, segments = with_turns(known, record, turns, self._lease.number)
        with self._promising(full, saved.id, saved.packs()) as (stored, packs):
            for segment, data in segments.items():
                self._upload(_turns(record.id, segment), data)
            for name, path in packs.items():
                self._upload(f"packs/{name}", path)
            self._upload(_snapshot(saved.id), saved.path)
            self._write(stored.id, encode(stored))
            self._keep(stored)
        self._cache.remove_outdated(record)
        if self._garbage:
            self._cache.sweeper.remove(also=self._collect)

    def bring(self, record: Record, position: int, *, memory: bool = True) -> None:
        name, stored = name_of(record.id, position), self._record(record.id).stored or Stored()
        if position not in stored.snapshots:
            raise SnapshotNotFound(f"agent {record.id} has no snapshot of {position} any more")
        id_ = stored.snapshots[position]
        if not self._is_here(name, id_):
            self.store.add(name, self._fetch(_snapshot(id_)), id_)
        if memory and self.store.open(name).lacks():
            with ThreadPoolExecutor(_AT_A_TIME) as pool:
                needed = (pack for pack, last in stored.packs.items() if last >= position)
                list(pool.map(self._bring_pack, needed))
            self.store.open(name).packs()

    def remove(self, record: Record) -> None:
        self._write(record.id, _REMOVED)
        self._objects.delete([_record(record.id)])
        with self._lock:
            self._versions.pop(record.id, None)
            self._count(self._records.pop(record.id, None), None)
        self._cache.remove_snapshots(record, self._collect)

    def wait(self) -> None:
        self._cache.wait()

    # ------------------------------------------------------------------ guests

    def guests(self) -> list[str]:
        with self._lock:
            return sorted(self._guests)

    def add_guest(self, wasm: bytes) -> str:
        self._lease.require()
        digest = self._cache.add_guest(wasm)
        name = f"{self._lease.number:010d}-{digest}.wasm"
        self._objects.put(f"guests/{name}", wasm)
        with self._lock:
            self._note_guest(name)
        return digest

    def remove_guest(self, digest: str) -> None:
        self._lease.require()
        with self._lock:
            names = self._guests.pop(digest, frozenset())
        self._objects.delete(f"guests/{name}" for name in names)
        self._cache.remove_guest(digest)
        self._lease.verify()  # a later holder may know it still

    def guest(self, digest: str) -> bytes | None:
        wasm = self._cache.guest(digest)
        name = max(self._guests.get(digest, ()), default=None)
        if wasm is None and name is not None:
            wasm = self._fetch(f"guests/{name}")
            if hashlib.sha256(wasm).hexdigest() != digest:
                raise SnapshotInvalid(f"{self._objects.url}/guests/{name} is damaged")
            self._cache.add_guest(wasm)
        return wasm

    def close(self) -> None:
        self._cache.sweeper.close()
        self._lease.release()
        self._cache.close()

    # ------------------------------------------------------------------ records

    def _admit(self, name: str, found: Found) -> FullRecord:
        """A record as it was found, and its version. SettingsError where it is damaged."""
        where = f"{self._objects.url}/agents/{name}"
        record = decode(found.data, name.removesuffix(".json"), where)
        self._versions[record.id] = found.version
        return record

    def _fence(self, record: FullRecord) -> FullRecord | None:
        """Writes a record anew, so that no older holder can; None where it is removed meanwhile."""
        for _ in range(_TRIES):
            stored = msgspec.structs.replace(record.stored or Stored(), holder=self._lease.number)
            mine = msgspec.structs.replace(record, stored=stored)
            seen = self._versions[record.id]
            version = self._objects.replace(_record(record.id), encode(mine), seen)
            if version is not None:
                self._versions[record.id] = version
                return mine
            found = self._objects.find(_record(record.id))
            if found is None or found.data == _REMOVED:
                return None
            record = self._admit(f"{record.id}.json", found)
        raise StorageError(f"another server keeps writing to {self._objects.url}")

    def _write(self, id_: str, data: bytes) -> None:
        """The record, if it is what this server last read or wrote. StorageError."""
        self._lease.require()
        name, seen = _record(id_), self._versions.get(id_)
        if seen is None:
            version = self._objects.create(name, data)
            self._lease.verify()  # nobody could fence what was not there
        else:
            version = self._objects.replace(name, data, seen)
            if version is None:
                version = self._write_again(name, data)
        if version is None:
            raise StorageError(f"{self._objects.url}/{name} was written by another server")
        self._versions[id_] = version

    def _write_again(self, name: str, data: bytes) -> Version | None:
        """The holder of the lease prevails over a request that came late, its own for instance.

        What is there is looked at first, and then the lease: a later holder would have fenced.
        """
        found = self._objects.find(name)
        self._lease.verify()
        return self._objects.replace(name, data, found.version) if found is not None else None

    # ------------------------------------------------------------------ objects

    def _upload(self, name: str, data: bytes | Path) -> None:
        if name not in self._there:
            self._objects.put(name, data)
            with self._lock:
                self._note(name)

    def _note(self, name: str) -> None:
        """Remembers an object that need not be uploaded."""
        self._there.add(name)
        if name.startswith("packs/"):
            self._packs[_kept(name)] = name.removeprefix("packs/")

    def _note_guest(self, name: str) -> None:
        """Remembers an object that is a guest."""
        digest = _kept(name).removesuffix(".wasm")
        self._guests[digest] = self._guests.get(digest, frozenset()) | {name}

    def _fetch(self, name: str) -> bytes:
        data = self._objects.get(name)
        if data is None:
            raise SnapshotInvalid(f"{self._objects.url}/{name} is missing")
        return data

    def _bring_pack(self, name: str) -> None:
        pack = _kept(name)
        if not self.store.has_pack(pack):
            self.store.add_pack(pack, self._fetch(f"packs/{name}"))

    def _is_here(self, name: str, id_: str) -> bool:
        try:
            return self.store.open(name).id == id_
        except (SnapshotNotFound, SnapshotInvalid):
            return False

    @contextlib.contextmanager
    def _promising(
        self, record: FullRecord, id_: str, packs: Iterable[Path]
    ) -> Iterator[tuple[FullRecord, dict[str, Path]]]:
        """The record with a snapshot and its packs, and which objects these are or are to be.

        Keeps what the record will name from being removed as garbage.
        """
        number, paths = self._lease.number, list(packs)
        with self._lock:
            while True:
                names = (self._packs.get(it.name, f"{number:010d}-{it.name}") for it in paths)
                objects = dict(zip(names, paths, strict=True))
                full = _with(record, id_, objects, number)
                promised = _objects_of(full)
                if not promised & self._going:
                    break
                self._lock.wait()
            self._promised[full.id] = promised
        try:
            yield full, objects
        finally:
            with self._lock:
                del self._promised[full.id]

    def _record(self, id_: str) -> FullRecord:
        found = self._records.get(id_)
        if found is None:
            raise SnapshotNotFound(f"there is no agent {id_}")
        return found

    def _keep(self, record: FullRecord) -> None:
        with self._lock:
            self._count(self._records.get(record.id), record)
            self._records[record.id] = record

    def _count(self, old: FullRecord | None, new: FullRecord | None) -> None:
        """Notes which objects a record names no more, and which it names."""
        before, after = (set() if it is None else _objects_of(it) for it in (old, new))
        self._uses.update(after - before)
        self._garbage -= after
        for name in before - after:
            self._uses[name] -= 1
            if not self._uses[name]:
                del self._uses[name]
                self._garbage.add(name)

    def _collect(self) -> None:
        """Removes what nobody names any more. What cannot be removed now is at the next start."""
        with self._lock:
            going = self._garbage.difference(*self._promised.values())
            self._garbage -= going
            self._there -= going
            for name in going:
                if self._packs.get(_kept(name)) == name.removeprefix("packs/"):
                    del self._packs[_kept(name)]
            self._going |= going
        try:
            self._lease.require()
            self._objects.delete(going)
        except StorageError as error:
            _log.warning("garbage stays until the next start: %s", error)
        finally:
            with self._lock:
                self._going -= going
                self._lock.notify_all()


def _with(record: FullRecord, id_: str, packs: Iterable[str], holder: int) -> FullRecord:
    """The record that names a snapshot and its packs too, and no more what is outdated."""
    stored, oldest = record.stored or Stored(), -1 if record.outdated is None else record.outdated
    snapshots = {**stored.snapshots, record.position: id_}
    needed = {**stored.packs, **dict.fromkeys(packs, record.position)}
    stored = Stored(
        snapshots={at: it for at, it in snapshots.items() if at > oldest},
        packs={name: last for name, last in needed.items() if last > oldest},
        holder=holder,
    )
    return msgspec.structs.replace(record, stored=stored)


def _objects_of(record: FullRecord) -> set[str]:
    stored = record.stored or Stored()
    packs = {f"packs/{name}" for name in stored.packs}
    turns = {_turns(record.id, segment) for segment in record.segments}
    return packs | turns | {_snapshot(id_) for id_ in stored.snapshots.values()}


def _record(id_: str) -> str:
    return f"agents/{id_}.json"


def _turns(id_: str, segment: Segment) -> str:
    return f"turns/{segment.holder:010d}-{id_}.{segment.sha256}"


def _snapshot(id_: str) -> str:
    return f"snapshots/{id_}.safetensors"


def _kept(name: str) -> str:
    """The pack or guest that an object is; those of earlier releases have no holder's number."""
    return name.rpartition("/")[2].rpartition("-")[2]
