"""Agents in an object store, with a local folder as the working copy.

::

    URL/lease/…                  who may write; see `lease`
    URL/agents/ID.json           the record: which objects the agent is made of
    URL/snapshots/ID.safetensors manifests, by a snapshot's id
    URL/packs/SHA256.pack.…      chunks, as the cache's store packs them
    URL/guests/SHA256.wasm

Actors are saved into the cache and restored from it, so that their memory is mapped. A commit
uploads the packs that are not there yet, then the manifest, and last the record, in one atomic PUT:
before it the message has not happened. All other objects are named by what is in them and never
change. What no record names is garbage.

The cache may be empty or stale: a record tells the ids of its snapshots, a snapshot's id covers its
chunks' hashes, and both are checked when they are fetched.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from isthmus.errors import SnapshotInvalid, SnapshotNotFound, StorageError
from isthmus.server.folder import Folder
from isthmus.server.lease import Lease
from isthmus.server.objects import Objects
from isthmus.server.record import Record, Stored, decode, encode, name_of

_log = logging.getLogger("isthmus.server")
_AT_A_TIME = 8
"""Packs of one agent that are fetched together."""


class Mirror:
    """See the module and `Home`. Owns the lease and the cache."""

    def __init__(self, url: str, cache: Path, lease_s: float) -> None:
        self._objects = Objects(url)
        self._cache = Folder(cache)
        self.store = self._cache.store
        try:
            self._lease = Lease(self._objects, self._cache.owner(), lease_s)
        except BaseException:
            self._cache.close()
            raise
        self._lock = threading.Lock()
        """Of all below, and of removing garbage: nobody begins to need what is being removed."""
        self._records: dict[str, Record] = {}
        self._promised: dict[str, set[str]] = {}
        """What records will name whose commit goes on, by agent."""
        self._there: set[str] = set()
        """Packs and snapshots that need not be uploaded."""
        self._guests: frozenset[str] = frozenset()

    def records(self) -> list[Record]:
        found = self._objects.get_all("agents")
        records = [
            decode(data, name.removesuffix(".json"), f"{self._objects.url}/agents/{name}")
            for name, data in found.items()
        ]
        self._records = {record.id: record for record in records}
        self._guests = frozenset(
            name.removesuffix(".wasm") for name in self._objects.names("guests")
        )
        folders = ("packs", "snapshots")
        self._there = {f"{it}/{name}" for it in folders for name in self._objects.names(it)}
        self._collect()
        self._cache.sweep(records, repack=False)
        return records

    # ------------------------------------------------------------------ snapshots

    def commit(self, record: Record) -> Record:
        self._lease.require()
        saved = self.store.open(record.snapshot)
        packs = saved.packs()
        record = _with(record, saved.id, packs)
        with self._promising(record):
            for path in packs:
                self._upload(f"packs/{path.name}", path)
            self._upload(_snapshot(saved.id), saved.path)
            self._lease.require()
            self._objects.put(f"agents/{record.id}.json", encode(record))
            self._records[record.id] = record
        if record.outdated is not None:
            self._cache.delete_snapshot(record, record.outdated)
            self._collect()
        return record

    def bring(self, record: Record, position: int, *, memory: bool = True) -> None:
        name, stored = name_of(record.id, position), record.stored or Stored()
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
        self._lease.require()
        self._objects.delete([f"agents/{record.id}.json"])
        with self._lock:
            self._records.pop(record.id, None)
        self._collect()
        self._cache.delete_snapshots(record)
        self.store.gc(repack=False)

    # ------------------------------------------------------------------ guests

    def guests(self) -> list[str]:
        return sorted(self._guests)

    def add_guest(self, wasm: bytes) -> str:
        self._lease.require()
        digest = self._cache.add_guest(wasm)
        self._objects.put(_guest(digest), wasm)
        with self._lock:
            self._guests |= {digest}
        return digest

    def guest(self, digest: str) -> bytes | None:
        wasm = self._cache.guest(digest)
        if wasm is None and digest in self._guests:
            wasm = self._fetch(_guest(digest))
            if hashlib.sha256(wasm).hexdigest() != digest:
                raise SnapshotInvalid(f"{self._objects.url}/{_guest(digest)} is damaged")
            self._cache.add_guest(wasm)
        return wasm

    def close(self) -> None:
        self._lease.release()
        self._cache.close()

    # ------------------------------------------------------------------ objects

    def _upload(self, name: str, path: Path) -> None:
        if name not in self._there:
            self._objects.put_file(name, path)
            with self._lock:
                self._there.add(name)

    def _fetch(self, name: str) -> bytes:
        data = self._objects.get(name)
        if data is None:
            raise SnapshotInvalid(f"{self._objects.url}/{name} is missing")
        return data

    def _bring_pack(self, name: str) -> None:
        if not self.store.has_pack(name):
            self.store.add_pack(name, self._fetch(f"packs/{name}"))

    def _is_here(self, name: str, id_: str) -> bool:
        try:
            return self.store.open(name).id == id_
        except (SnapshotNotFound, SnapshotInvalid):
            return False

    @contextlib.contextmanager
    def _promising(self, record: Record) -> Iterator[None]:
        """Keeps what the record will name from being removed as garbage."""
        with self._lock:
            self._promised[record.id] = _objects_of(record)
        try:
            yield
        finally:
            with self._lock:
                del self._promised[record.id]

    def _collect(self) -> None:
        """Removes what nobody names any more. What cannot be removed now is at the next start."""
        with self._lock:
            named = set().union(*map(_objects_of, self._records.values()), *self._promised.values())
            garbage = self._there - named
            self._there -= garbage
            try:
                self._lease.require()
                self._objects.delete(garbage)
            except StorageError as error:
                _log.warning("garbage stays until the next start: %s", error)


def _with(record: Record, id_: str, packs: Iterable[Path]) -> Record:
    """The record that names a snapshot and its packs too, and no more what is outdated."""
    stored, oldest = record.stored or Stored(), -1 if record.outdated is None else record.outdated
    snapshots = {**stored.snapshots, record.position: id_}
    needed = {**stored.packs, **{path.name: record.position for path in packs}}
    stored = Stored(
        snapshots={at: it for at, it in snapshots.items() if at > oldest},
        packs={name: last for name, last in needed.items() if last > oldest},
    )
    return msgspec.structs.replace(record, stored=stored)


def _objects_of(record: Record) -> set[str]:
    stored = record.stored or Stored()
    packs = {f"packs/{name}" for name in stored.packs}
    return packs | {_snapshot(id_) for id_ in stored.snapshots.values()}


def _snapshot(id_: str) -> str:
    return f"snapshots/{id_}.safetensors"


def _guest(digest: str) -> str:
    return f"guests/{digest}.wasm"
