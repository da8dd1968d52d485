"""Agents in a local folder.

::

    DATA/lock               held while a server uses the folder; the text in it is its name
    DATA/agents/ID.json     what the agent is, its turns, and which snapshot is its last
    DATA/store/             a store of snapshots, ID.POSITION, that share their chunks
    DATA/guests/SHA256.wasm guests that clients brought

A record is replaced by a rename, so that it names one snapshot or the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from isthmus.errors import SettingsError, SnapshotNotFound, StorageError
from isthmus.server.record import Record, decode, encode, name_of
from isthmus.snapshot import Store
from isthmus.snapshot.atomic import AtomicFile

_LOCK = "lock"


class Folder:
    """See the module and `Home`. Owns the folder's lock."""

    def __init__(self, path: Path) -> None:
        self._agents, self._guests = path / "agents", path / "guests"
        for folder in (self._agents, self._guests):
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise SettingsError(f"cannot make {folder}: {error.strerror}") from None
        self._path = path
        self._lock = _lock(path)
        self.store = Store(path / "store")

    def records(self) -> list[Record]:
        records = []
        for path in sorted(self._agents.glob("*.json")):
            try:
                data = path.read_bytes()
            except OSError as error:
                raise SettingsError(f"cannot read {path}: {error.strerror}") from None
            records.append(decode(data, path.stem, str(path)))
        self.sweep(records)
        return records

    def commit(self, record: Record) -> Record:
        self._require_lock()
        _write(self._agents / f"{record.id}.json", encode(record))
        if record.outdated is not None:
            self.delete_snapshot(record, record.outdated)
        return record

    def bring(self, record: Record, position: int, *, memory: bool = True) -> None:
        """Nothing to do: whatever there is, is here."""

    def remove(self, record: Record) -> None:
        self._require_lock()
        (self._agents / f"{record.id}.json").unlink(missing_ok=True)
        self.delete_snapshots(record)
        self.store.gc()

    def guests(self) -> list[str]:
        return sorted(path.stem for path in self._guests.glob("*.wasm"))

    def add_guest(self, wasm: bytes) -> str:
        digest = hashlib.sha256(wasm).hexdigest()
        _write(self._guests / f"{digest}.wasm", wasm)
        return digest

    def remove_guest(self, digest: str) -> None:
        (self._guests / f"{digest}.wasm").unlink(missing_ok=True)

    def guest(self, digest: str) -> bytes | None:
        path = self._guests / f"{digest}.wasm"
        return path.read_bytes() if path.exists() else None

    def close(self) -> None:
        os.close(self._lock)

    # ------------------------------------------------------------------ for this floor

    def owner(self) -> str:
        """The name of this folder, which no copy of it has."""
        name = os.pread(self._lock, 64, 0) or secrets.token_hex(16).encode()
        os.pwrite(self._lock, name, 0)
        return f"{name.decode()}-{os.fstat(self._lock).st_ino}"

    def sweep(self, records: Iterable[Record], *, repack: bool = True) -> None:
        """Removes snapshots of turns that never happened, and their chunks."""
        done = {record.id: record.position for record in records}
        undone = [name for name in self.store.names() if not _is_done(name, done)]
        for name in undone:
            self._delete(name)
        if undone:
            self.store.gc(repack=repack)

    def delete_snapshots(self, record: Record) -> None:
        """Removes all of an agent's snapshots; their chunks go with the next `Store.gc`."""
        for name in self.store.names():
            if name.startswith(f"{record.id}."):
                self._delete(name)

    def delete_snapshot(self, record: Record, position: int) -> None:
        """Removes one of them, if it is there."""
        self._delete(name_of(record.id, position))

    def _require_lock(self) -> None:
        """StorageError where the lock's file was removed, so that another server may have one."""
        if not _is_at(self._lock, self._path / _LOCK):
            raise StorageError(
                f"{self._path / _LOCK} was removed or replaced while this server ran, and another "
                "one may use the folder: stop this one"
            )

    def _delete(self, name: str) -> None:
        with contextlib.suppress(SnapshotNotFound):
            self.store.delete(name)


def _write(path: Path, data: bytes) -> None:
    with AtomicFile(path) as file:
        file.write(data, 0)
        file.commit(len(data))


def _is_done(name: str, done: dict[str, int]) -> bool:
    """Whether a snapshot is of a turn that happened."""
    id_, _, position = name.partition(".")
    return position.isdecimal() and int(position) <= done.get(id_, -1)


def _lock(data: Path) -> int:
    """The data folder's lock, which ends with this process. SettingsError where another has it."""
    try:
        fd = os.open(data / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise SettingsError(f"cannot open {data / _LOCK}: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(fd, data / _LOCK):
            return fd
        said = f"{data / _LOCK} was removed meanwhile: start again"
    except BlockingIOError:
        said = f"another server uses {data}: give this one a folder of its own"
    except OSError as error:
        said = f"{data} cannot be locked: {error.strerror}; give a folder on a local disk"
    os.close(fd)
    raise SettingsError(said)


def _is_at(fd: int, path: Path) -> bool:
    """Whether an open file is the one of that name."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat(follow_symlinks=False))
    except OSError:
        return False
