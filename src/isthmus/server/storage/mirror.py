"""Agents in an object store, with a local folder as the working copy.

::

    URL/lease/…                    which servers there are; see `node`
    URL/agents/ID.json             the record: who owns the agent, and which objects it is made of
    URL/turns/NODE-ID.SHA256       earlier turns, in segments that never change
    URL/snapshots/NODE-ID.safetensors  manifests, by a snapshot's id
    URL/packs/NODE-SHA256.…        chunks, as the cache's store packs them
    URL/guests/NODE-SHA256.wasm

Actors are saved into the cache and restored from it, so that their memory is mapped. A commit
uploads the packs that are not there yet and the manifest, side by side, and then the record, in
one atomic PUT: before it the message has not happened. All other objects are named by what is in
them and never change. What no record names is garbage; see `garbage`.

Any number of servers share a URL. Each agent has one owner at a time, and a record is written on
condition that it is what its owner last read or wrote; see `records`. An agent is removed by an
empty record, on the same condition, and then by removing that.

The cache may be empty or stale: a record tells the ids of its snapshots, a snapshot's id covers its
chunks' hashes, and both are checked when they are fetched.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from isthmus.errors import SettingsError, SnapshotInvalid, SnapshotNotFound, StorageError
from isthmus.server.storage.computes import Computes
from isthmus.server.storage.folder import Folder
from isthmus.server.storage.garbage import Garbage, kept_of, snapshot_name, turns_name
from isthmus.server.storage.history import turns_of, with_turns
from isthmus.server.storage.naming import with_midway, with_snapshot, without_midway
from isthmus.server.storage.node import Node, Peer
from isthmus.server.storage.objects import Objects
from isthmus.server.storage.record import (
    FullRecord,
    Record,
    Segment,
    Stored,
    Turn,
    midway_name,
    name_of,
)
from isthmus.server.storage.records import Records
from isthmus.snapshot import Snapshot

_log = logging.getLogger("isthmus.server")
_AT_A_TIME = 8
"""Packs of one agent that are fetched together."""
_UPLOADS = 16
"""Objects that are uploaded side by side, for all agents."""
_SCAN_EVERY_S = 3600.0
"""Seconds between two scans for garbage, which read what has changed of all records."""


class Mirror:
    """See the module and `Home`. Owns the node and the cache."""

    def __init__(
        self, url: str, cache: Path, lease_s: float, computes: Computes | None = None
    ) -> None:
        self._objects = Objects(url)
        self._folder = cache
        self._cache = Folder(cache, repack=False)
        self.store = self._cache.store
        try:
            self._node = Node(self._objects, self._cache.owner(), lease_s, computes)
        except BaseException:
            self._cache.close()
            raise
        self._records = Records(self._objects, self._node)
        self._garbage = Garbage(self._objects, self._node, self._records)
        self._uploaders = ThreadPoolExecutor(_UPLOADS, "isthmus-upload")
        self._scanned = 0.0
        """When the last scan began, on the clock of time.monotonic."""
        self._lock = threading.Lock()
        """Of the next."""
        self._guests: dict[str, frozenset[str]] = {}
        """The objects that each guest is, by its hash."""

    # ------------------------------------------------------------------ agents and their owners

    def records(self) -> list[Record]:
        self._records.refresh()  # SettingsError, before anything is removed
        self._list_guests()
        self._scan()
        brief = self._brief()
        self._cache.sweep(brief)
        return brief

    def refresh(self) -> list[Record]:
        try:
            self._records.refresh()
        except SettingsError as error:
            raise StorageError(str(error)) from None
        return self._brief()

    def look(self, id_: str) -> tuple[Record | None, Peer | None]:
        found = self._records.look(id_)
        if found is None:
            return None, None
        return found.brief(), None if self.owns(id_) else self._records.owner_of(found)

    def owns(self, id_: str) -> bool:
        return self._records.owns(id_)

    def acquire(self, id_: str) -> Record:
        found = self._records.acquire(id_)
        self._garbage.own(found)
        return found.brief()

    def release(self, id_: str) -> None:
        self._garbage.leave(id_)
        self._records.release(id_)

    def others(self) -> frozenset[int]:
        return self._node.others()

    def has_ended(self, number: int) -> bool:
        return self._node.has_ended(number)

    def advertise(self, address: str) -> None:
        self._node.advertise(address)

    @property
    def sharing(self) -> Mirror:
        return self

    @property
    def computes(self) -> Computes:
        return self._node.computes

    @property
    def number(self) -> int:
        return self._node.number

    def peers(self) -> list[Peer]:
        return self._node.peers()

    @property
    def token(self) -> str:
        return self._node.token

    def _brief(self) -> list[Record]:
        return [it.brief() for it in self._records.all()]

    # ------------------------------------------------------------------ snapshots

    def turns(self, record: Record) -> list[Turn]:
        for last in (False, False, True):
            full = self._records.get(record.id)
            try:
                turns = turns_of(full, lambda it: self._fetch(turns_name(record.id, it)))
            except SnapshotInvalid:  # a message was done meanwhile, and the oldest turns went
                if last or full == self._records.get(record.id):
                    raise
                continue
            return [turn for turn in turns if turn.position <= record.position]
        raise AssertionError("unreachable")

    def commit(self, record: Record, turns: Sequence[Turn], *, is_new: bool = False) -> None:
        number = self._node.number
        known = None if is_new else self._records.get(record.id)
        if known is not None and not turns:  # what it is called, for instance: nothing to upload
            full, _ = with_turns(known, record, ())
            full = full if record.midway is not None else without_midway(full)
            self._garbage.own(self._records.write(full, number))
        else:
            full, segments = with_turns(known, record, turns, number)
            self._commit(full, segments, self.store.open(record.snapshot), number, is_new=is_new)
            self._cache.remove_outdated(record)
        self._cache.forget_midway(known, record)
        if self._garbage.waits:
            self._cache.sweeper.remove(also=self._collect)

    def commit_midway(self, record: Record) -> None:
        number, name = self._node.number, midway_name(record)
        if name is None:
            raise AssertionError("a record without the middle of an answer")
        full, _ = with_turns(self._records.get(record.id), record, ())
        self._commit(full, {}, self.store.open(name), number, is_midway=True)
        if self._garbage.waits:
            self._cache.sweeper.remove(also=self._collect)

    def _commit(
        self,
        full: FullRecord,
        segments: dict[Segment, bytes],
        saved: Snapshot,
        number: int,
        *,
        is_new: bool = False,
        is_midway: bool = False,
    ) -> None:
        """Uploads what a record is to name, and then writes it."""
        packs = self._packs(full, saved.packs(), number)
        names = [it.removeprefix("packs/") for it in packs]
        said = f"{number:010d}-{saved.id}"
        full = with_midway(full, said, names) if is_midway else with_snapshot(full, said, names)
        try:
            with self._garbage.promising(full.id, full):
                self._upload_all(full, segments, {**packs, snapshot_name(said): saved.path})
                write = self._records.create if is_new else self._records.write
                self._garbage.own(write(full, number))
        except BaseException:
            if not self._records.owns(full.id):
                self._garbage.leave(full.id)
            raise

    def bring(self, record: Record, position: int, *, memory: bool = True) -> None:
        stored = self._records.get(record.id).stored or Stored()
        if position not in stored.snapshots:
            raise SnapshotNotFound(f"agent {record.id} has no snapshot of {position} any more")
        needed = [pack for pack, last in stored.packs.items() if last >= position]
        self._bring(name_of(record.id, position), stored.snapshots[position], needed, memory=memory)

    def bring_midway(self, record: Record) -> None:
        stored, name = self._records.get(record.id).stored or Stored(), midway_name(record)
        if name is None or not stored.midway:
            raise SnapshotNotFound(f"agent {record.id} is in the middle of no answer")
        needed = [pack for pack, last in stored.packs.items() if last > record.position]
        self._bring(name, stored.midway, needed, memory=True)

    def _bring(self, name: str, said: str, needed: list[str], *, memory: bool) -> None:
        """Has a snapshot in the store, of which a record says this."""
        if not self._is_here(name, kept_of(said)):
            self.store.add(name, self._fetch(snapshot_name(said)), kept_of(said))
        if memory and self.store.open(name).lacks():
            with ThreadPoolExecutor(_AT_A_TIME) as pool:
                list(pool.map(self._bring_pack, needed))
            self.store.open(name).packs()

    def remove(self, record: Record) -> None:
        self._records.remove(record.id)
        self._garbage.drop(record.id)
        self._cache.remove_snapshots(record, self._collect)

    def wait(self) -> None:
        self._cache.wait()

    # ------------------------------------------------------------------ guests

    def guests(self) -> list[str]:
        try:
            self._list_guests()
        except StorageError as error:
            _log.warning("guests that other servers were brought may be missing: %s", error)
        with self._lock:
            return sorted(self._guests)

    def add_guest(self, wasm: bytes) -> str:
        number = self._node.number
        self._node.require(number)
        digest = self._cache.add_guest(wasm)
        name = f"{number:010d}-{digest}.wasm"
        self._objects.put(f"guests/{name}", wasm)
        with self._lock:
            self._note_guest(name)
        return digest

    def remove_guest(self, digest: str) -> None:
        self._node.require(self._node.number)
        with self._lock:
            names = self._guests.pop(digest, frozenset())
        self._objects.delete(f"guests/{name}" for name in names)
        self._cache.remove_guest(digest)

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
        self._uploaders.shutdown()
        self._cache.sweeper.close()
        self._node.release()
        self._cache.close()

    # ------------------------------------------------------------------ objects

    def _packs(self, record: FullRecord, paths: Iterable[Path], number: int) -> dict[str, Path]:
        """Packs by their objects: those that the record names already, or for a fork
        the agent that it is forked from, which is held meanwhile; else this node's own."""
        source = record
        if record.stored is None and record.origin is not None and record.kind == "agent":
            source = self._records.find(record.origin.id) or record
        named = {kept_of(it): it for it in (source.stored or Stored()).packs}
        names = {it: named.get(it.name, f"{number:010d}-{it.name}") for it in paths}
        return {f"packs/{name}": it for it, name in names.items()}

    def _upload_all(
        self, record: FullRecord, segments: dict[Segment, bytes], files: dict[str, Path]
    ) -> None:
        """Uploads what a record is to name, side by side: it takes as long as one object."""
        wanted: dict[str, bytes | Path] = {**files}
        wanted |= {turns_name(record.id, segment): data for segment, data in segments.items()}
        uploads = [self._uploaders.submit(self._upload, *pair) for pair in wanted.items()]
        wait(uploads)  # also if one fails: nothing is uploaded after that
        for it in uploads:
            it.result()

    def _upload(self, name: str, data: bytes | Path) -> None:
        """Uploads an object of this node's own; what another one has uploaded is there."""
        if self._garbage.is_mine(name) and not self._garbage.is_there(name):
            self._objects.put(name, data)
            self._garbage.note(name)

    def _list_guests(self) -> None:
        names = self._objects.names("guests")
        with self._lock:
            self._guests.clear()
            for name in names:
                self._note_guest(name)

    def _note_guest(self, name: str) -> None:
        """Remembers an object that is a guest."""
        digest = kept_of(name).removesuffix(".wasm")
        self._guests[digest] = self._guests.get(digest, frozenset()) | {name}

    def _fetch(self, name: str) -> bytes:
        data = self._objects.get(name)
        if data is None:
            raise SnapshotInvalid(f"{self._objects.url}/{name} is missing")
        return data

    def _bring_pack(self, name: str) -> None:
        pack = kept_of(name)
        if self.store.has_pack(pack):
            return
        data = self._objects.fetch(f"packs/{name}", self._folder)
        if data is None:
            raise SnapshotInvalid(f"{self._objects.url}/packs/{name} is missing")
        self.store.add_pack(pack, data)

    def _is_here(self, name: str, id_: str) -> bool:
        try:
            return self.store.open(name).id == id_
        except (SnapshotNotFound, SnapshotInvalid):
            return False

    # ------------------------------------------------------------------ garbage

    def _collect(self) -> None:
        """Removes what nobody names any more. What cannot be removed now is found by a scan."""
        try:
            self._garbage.collect()
            if self._garbage.waits_for_scan and time.monotonic() > self._scanned + _SCAN_EVERY_S:
                self._scan()
        except StorageError as error:
            _log.warning("garbage stays until the next scan: %s", error)

    def _scan(self) -> None:
        self._scanned = time.monotonic()
        self._garbage.scan()
