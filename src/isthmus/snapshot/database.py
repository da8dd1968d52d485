"""The SQLite file of an index: made, checked, opened, and used by one process at a time.

The file may come from a stranger, so its tables must be exactly those of this release before
anything is read, and a link or a pipe in its place, or its journal's, is refused.

SQLite is told to lock nothing; a file beside the database is locked instead (flock). Then it maps
no memory that others could cut short, which would end this process (SIGBUS): neither a write-ahead
log's shared memory, since without locks it refuses to have such a log, nor the database.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import stat
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isthmus.errors import SnapshotError

_IN_MEMORY = ":memory:"
_BUSY_S = 60.0
"""Seconds that another process is waited for."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.0002, 0.005
"""Between two looks whether another process is done: it usually takes less than a millisecond."""
SUFFIXES = ("", "-journal", "-wal", "-shm")
"""Of the files of a database, also of one that another release made."""
_JOURNAL, _LOCK = "-journal", "-lock"
_SCHEMA = (
    "CREATE TABLE pack (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE,"
    " nbytes INTEGER NOT NULL, doubt INTEGER NOT NULL)",
    "CREATE INDEX pack_doubt ON pack (id, doubt) WHERE doubt > 0",
    "CREATE TABLE chunk (digest BLOB NOT NULL, pack INTEGER NOT NULL,"
    " PRIMARY KEY (digest, pack)) WITHOUT ROWID",
    "CREATE TABLE snapshot (id INTEGER PRIMARY KEY AUTOINCREMENT, name BLOB NOT NULL,"
    " sha256 TEXT NOT NULL, stamp TEXT NOT NULL, doubt INTEGER NOT NULL, UNIQUE (name, sha256))",
    "CREATE INDEX snapshot_doubt ON snapshot (doubt) WHERE doubt > 0",
    "CREATE INDEX snapshot_sha256 ON snapshot (sha256)",
    "CREATE TABLE need (pack INTEGER NOT NULL, snapshot INTEGER NOT NULL,"
    " PRIMARY KEY (pack, snapshot)) WITHOUT ROWID",
    "CREATE INDEX need_snapshot ON need (snapshot)",
    "CREATE TABLE lack (digest BLOB NOT NULL, snapshot INTEGER NOT NULL,"
    " PRIMARY KEY (digest, snapshot)) WITHOUT ROWID",
    "CREATE INDEX lack_snapshot ON lack (snapshot)",
)
_OWN = "sqlite_sequence"
"""The table that SQLite itself adds."""
_NOT_NOW = ("is full", "readonly", "out of memory", "I/O error")
"""SQLite's words where nothing is wrong with the database."""
_OPTIONS: dict[str, Any] = {"isolation_level": None, "check_same_thread": False}


class IndexDamaged(Exception):
    """The index is no database, or not one of this release. Never leaves `snapshot`."""


class Database:
    """Owns a connection to a database, and a descriptor of its file if it has one.

    While the descriptor is open no other file can get the number that it has.
    """

    def __init__(self, path: Path | None) -> None:
        """That of a file, which is made if there is none, or one in memory. Nobody else may use it
        now. OSError, sqlite3.Error, IndexDamaged."""
        self._path = path
        self._process = os.getpid()
        self._fd = -1
        if path is not None:
            self._fd = _open_plain(path)
            weakref.finalize(self, os.close, self._fd)
        self.db = _prepared(_IN_MEMORY if path is None else _uri(path))

    @property
    def in_file(self) -> bool:
        """Whether others can use it too, one at a time."""
        return self._path is not None

    @property
    def inherited(self) -> bool:
        """Whether it belongs to a process that this one was forked from."""
        return self._process != os.getpid()

    @property
    def current(self) -> bool:
        """Whether its path still leads to it. IndexDamaged if its journal is no file."""
        if self._path is None:
            return True
        try:
            found = os.lstat(self._path)
        except OSError:
            return False
        _require_plain_journal(self._path)
        return os.path.samestat(found, os.fstat(self._fd))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Has the database at a path to itself while open. OSError; SnapshotError if others have it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(f"{path}{_LOCK}", flags, 0o600)
    try:
        _wait_for(fd, path)
        try:
            yield
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)  # a process that was forked meanwhile has it as well
    finally:
        os.close(fd)


def _wait_for(fd: int, path: Path) -> None:
    end, pause_s = time.monotonic() + _BUSY_S, _FIRST_PAUSE_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise SnapshotError(
                    f"cannot use {path}: another process has kept {path.name}{_LOCK} locked for "
                    f"{_BUSY_S:.0f} s; nothing was changed"
                ) from None
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _uri(path: Path) -> str:
    return f"{path.absolute().as_uri()}?nolock=1"


def _open_plain(path: Path) -> int:
    """A descriptor of a database. OSError; IndexDamaged where it, or its journal, is no file."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    if os.path.lexists(path) and not _is_plain(path):
        raise IndexDamaged
    _require_plain_journal(path)
    return os.open(path, flags, 0o600)


def _require_plain_journal(path: Path) -> None:
    """SQLite would wait for a pipe, and write to where a link leads."""
    journal = Path(f"{path}{_JOURNAL}")
    try:
        plain = _is_plain(journal)
    except OSError:
        return
    if not plain:
        raise IndexDamaged


def _prepared(uri: str) -> sqlite3.Connection:
    """A connection, once its tables are those of this release. IndexDamaged."""
    db: sqlite3.Connection = sqlite3.connect(uri, uri=True, **_OPTIONS)
    try:
        db.execute("PRAGMA mmap_size = 0")
        db.execute("PRAGMA trusted_schema = OFF")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA fullfsync = ON")  # of macOS alone: see machine.sync_file
        _require_no_log(db)
        db.execute("PRAGMA journal_mode = TRUNCATE")
        if not _tables(db):
            db.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA:
                db.execute(statement)
            db.execute("COMMIT")
        if _tables(db) != set(_SCHEMA):
            raise IndexDamaged
    except BaseException:
        db.close()
        raise
    return db


def _require_no_log(db: sqlite3.Connection) -> None:
    """IndexDamaged where the file says that it has a write-ahead log, which is refused."""
    try:
        db.execute("PRAGMA schema_version")
    except sqlite3.OperationalError:
        raise IndexDamaged from None


def _tables(db: sqlite3.Connection) -> set[str]:
    """What the tables, indices, triggers and views were made by."""
    rows = db.execute("SELECT sql FROM sqlite_master WHERE sql NOT NULL AND name != ?", (_OWN,))
    return {str(sql) for (sql,) in rows}


def _is_plain(path: Path) -> bool:
    return stat.S_ISREG(os.lstat(path).st_mode)


@contextlib.contextmanager
def explained_sqlite(path: Path | None) -> Iterator[None]:
    """Turns SQLite's errors into IndexDamaged, or SnapshotError if the file cannot be used now."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if any(it in str(error) for it in _NOT_NOW):
            raise SnapshotError(f"cannot use {path}: {error}; nothing was changed") from None
        raise IndexDamaged from None  # somebody emptied it, or gave it a log, while it was open
    except (sqlite3.DatabaseError, UnicodeDecodeError):  # the latter: SQLite quotes what it found
        raise IndexDamaged from None
