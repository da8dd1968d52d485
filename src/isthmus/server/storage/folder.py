"""Agents in a local folder.

::

    DATA/lock               held while a server uses the folder; the text in it is its name
    DATA/agents/ID.json     what the agent is, its last turns, and which snapshot is its last
    DATA/turns/ID.SHA256    turns before those, in segments that never change
    DATA/store/             a store of snapshots, ID.POSITION, that share their chunks; of the
                            middle of an answer ID.MESSAGE
    DATA/guests/SHA256.wasm guests that clients brought

A record is replaced by a rename, so that it names one snapshot or the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from isthmus.config import MAX_GUEST_NBYTES
from isthmus.errors import (
    SettingsError,
    SnapshotError,
    SnapshotInvalid,
    SnapshotNotFound,
    StorageError,
)
from isthmus.server.storage.history import turns_of, with_turns
from isthmus.server.storage.record import (
    KEPT_TURNS,
    MAX_NBYTES,
    FullRecord,
    Record,
    Segment,
    Turn,
    decode,
    decode_brief,
    encode,
    midway_name,
    name_of,
)
from isthmus.server.storage.sweeper import Sweeper
from isthmus.snapshot import Store
from isthmus.snapshot.atomic import AtomicFile, explained, sweep, sync_folder
from isthmus.snapshot.regular import read_whole

_LOCK = "lock"
_FOLDERS = ("agents", "guests", "turns")
_MAX_DIGITS = 18
_OUTDATED_AT_ONCE = 16
"""Messages of one agent after which its outdated snapshots are removed together."""


class Folder:
    """See the module and `Home`. Owns the folder's lock."""

    sharing = None

    def __init__(self, path: Path, *, repack: bool = True) -> None:
        """With `repack` packs of which little is used are written anew."""
        self._agents, self._guests, self._turns = (path / it for it in _FOLDERS)
        for folder in (self._agents, self._guests, self._turns):
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise SettingsError(f"cannot make {folder}: {error.strerror}") from None
        self._path = path
        self._lock = _lock(path)
        self.store = Store(path / "store")
        self.sweeper = Sweeper(self.store, repack=repack)
        for folder in (self._agents, self._guests, self._turns):
            sweep(folder)

    def records(self) -> list[Record]:
        records = []
        for path in self._files(self._agents, ".json"):
            try:
                data = read_whole(path, MAX_NBYTES)
            except SnapshotError as error:
                raise SettingsError(str(error)) from None
            records.append(decode_brief(data, path.stem, str(path)))
        self.sweep(records)
        known = {record.id for record in records}
        for path in self._files(self._turns, ""):
            if path.name.partition(".")[0] not in known:
                with contextlib.suppress(OSError):
                    path.unlink()
        return records

    def turns(self, record: Record) -> list[Turn]:
        for last in (False, False, True):
            full = self._full(record.id)
            if full is None:
                raise SnapshotNotFound(f"there is no agent {record.id}")
            try:
                turns = turns_of(full, lambda it: self._read_segment(record.id, it))
            except SnapshotNotFound:  # a message was done meanwhile, and the oldest turns went
                if last:
                    raise SnapshotInvalid(f"turns of agent {record.id} are missing") from None
                continue
            return [turn for turn in turns if turn.position <= record.position]
        raise AssertionError("unreachable")

    def commit(self, record: Record, turns: Sequence[Turn], *, is_new: bool = False) -> None:
        self._require_lock()
        known = self._full(record.id)
        full, new = with_turns(known, record, turns)
        for segment, data in new.items():
            _write(self._segment(record.id, segment), data)
        _write(self._agents / f"{record.id}.json", encode(full))
        self.forget_midway(known, record)
        gone = set(known.segments if known is not None else ()) - set(full.segments)
        if gone or (record.outdated is not None and record.outdated % _OUTDATED_AT_ONCE == 0):
            self.sweeper.remove(_outdated(record), lambda: self._remove_segments(record.id, gone))

    def commit_midway(self, record: Record) -> None:
        known = self._full(record.id)
        if known is None or known.midway != record.midway:  # else only the snapshot is another one
            self.commit(record, ())

    def bring_midway(self, record: Record) -> None:
        """Nothing to do, as in `bring`."""

    def bring(self, record: Record, position: int, *, memory: bool = True) -> None:
        """Nothing to do: whatever there is, is here."""

    def remove(self, record: Record) -> None:
        self._require_lock()
        with explained(self._agents):
            known = self._full(record.id)
            (self._agents / f"{record.id}.json").unlink(missing_ok=True)
            sync_folder(self._agents)
        segments = known.segments if known is not None else ()
        self.remove_snapshots(record, lambda: self._remove_segments(record.id, segments))

    def wait(self) -> None:
        self.sweeper.wait()

    def guests(self) -> list[str]:
        return [path.stem for path in self._files(self._guests, ".wasm")]

    def add_guest(self, wasm: bytes) -> str:
        digest = hashlib.sha256(wasm).hexdigest()
        _write(self._guests / f"{digest}.wasm", wasm)
        return digest

    def remove_guest(self, digest: str) -> None:
        (self._guests / f"{digest}.wasm").unlink(missing_ok=True)

    def guest(self, digest: str) -> bytes | None:
        try:
            return read_whole(self._guests / f"{digest}.wasm", MAX_GUEST_NBYTES)
        except SnapshotNotFound:
            return None

    def close(self) -> None:
        self.sweeper.close()
        os.close(self._lock)

    # ------------------------------------------------------------------ for this floor

    def owner(self) -> str:
        """The name of this folder, which no copy of it has."""
        name = os.pread(self._lock, 64, 0) or secrets.token_hex(16).encode()
        os.pwrite(self._lock, name, 0)
        return f"{name.decode()}-{os.fstat(self._lock).st_ino}"

    def sweep(self, records: Iterable[Record]) -> None:
        """Removes snapshots of turns that never happened; their chunks go beside other work."""
        records = list(records)
        done = {record.id: record.position for record in records}
        midway = set(map(midway_name, records))
        undone = [it for it in self.store.names() if not _is_done(it, done) and it not in midway]
        self.store.delete_all(undone)
        if undone:
            self.sweeper.remove()

    def remove_snapshots(self, record: Record, also: Callable[[], object] | None = None) -> None:
        """Removes all of an agent's snapshots, beside other work."""
        first = max(1, record.position - KEPT_TURNS - _OUTDATED_AT_ONCE)
        positions = (0, *range(first, record.position + 2))
        midway = midway_name(record)
        names = [name_of(record.id, it) for it in positions]
        self.sweeper.remove(names if midway is None else [*names, midway], also)

    def forget_midway(self, known: Record | None, record: Record) -> None:
        """Removes the snapshot from the middle of an answer, beside other work, if a record that
        was `known` does not name it any more."""
        before = None if known is None else midway_name(known)
        if before is not None and before != midway_name(record):
            self.sweeper.remove([before])

    def remove_outdated(self, record: Record) -> None:
        """Removes snapshots that are more than are kept, beside other work."""
        if record.outdated is not None and record.outdated % _OUTDATED_AT_ONCE == 0:
            self.sweeper.remove(_outdated(record))

    def _full(self, id_: str) -> FullRecord | None:
        """An agent's record; None where there is none. SnapshotInvalid, SnapshotError."""
        path = self._agents / f"{id_}.json"
        try:
            return decode(read_whole(path, MAX_NBYTES), id_, str(path))
        except SnapshotNotFound:
            return None
        except SettingsError as error:
            raise SnapshotInvalid(str(error)) from None

    def _segment(self, id_: str, segment: Segment) -> Path:
        return self._turns / f"{id_}.{segment.sha256}"

    def _read_segment(self, id_: str, segment: Segment) -> bytes:
        return read_whole(self._segment(id_, segment), MAX_NBYTES)

    def _remove_segments(self, id_: str, segments: Iterable[Segment]) -> None:
        for segment in segments:
            self._segment(id_, segment).unlink(missing_ok=True)

    @staticmethod
    def _files(folder: Path, suffix: str) -> list[Path]:
        """What has that suffix, in order. Hidden files are somebody else's, or not finished."""
        with explained(folder, "read"):
            names = os.listdir(folder)
        return [folder / it for it in sorted(names) if it.endswith(suffix) and it[0] != "."]

    def _require_lock(self) -> None:
        """StorageError where the lock's file was removed, so that another server may have one."""
        if not _is_at(self._lock, self._path / _LOCK):
            raise StorageError(
                f"{self._path / _LOCK} was removed or replaced while this server ran, and another "
                "one may use the folder: stop this one"
            )


def _write(path: Path, data: bytes) -> None:
    with AtomicFile(path, swept=True) as file:
        file.write(data, 0)
        file.commit(len(data))


def _outdated(record: Record) -> list[str]:
    """The snapshots that a record at this position has outlived since the last time."""
    last = record.outdated or 0
    first = max(1, last - _OUTDATED_AT_ONCE + 1)
    return [name_of(record.id, it) for it in range(first, last + 1)]


def _is_done(name: str, done: dict[str, int]) -> bool:
    """Whether a snapshot is of a turn that happened, and is one of those that are kept."""
    id_, _, position = name.partition(".")
    last = done.get(id_, -1)
    if not position.isdecimal() or len(position) > _MAX_DIGITS or int(position) > last:
        return False
    return int(position) == 0 or int(position) > last - KEPT_TURNS


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
