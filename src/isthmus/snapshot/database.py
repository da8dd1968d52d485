"""The SQLite file of an index: made, checked and opened.

The file may come from a stranger, so its tables must be exactly those of this release before
anything is read, and a link or a pipe in its place is refused.

Nothing but SQLite may open the file: the system drops all locks that a process has on a file as
soon as the process closes any descriptor of it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isthmus.errors import SnapshotError

_IN_MEMORY = ":memory:"
_BUSY_S = 60.0
"""Seconds that a statement waits for another process."""
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
_TRIES, _PAUSE_S = 100, 0.02
"""Another process that opens a new file at the same time is not waited for by SQLite."""
_OWN = "sqlite_sequence"
"""The table that SQLite itself adds."""
_OPTIONS: dict[str, Any] = {
    "timeout": _BUSY_S,
    "isolation_level": None,
    "check_same_thread": False,
}


class IndexDamaged(Exception):
    """The index is no database, or not one of this release. Never leaves `snapshot`."""


def open_database(path: Path | None) -> sqlite3.Connection:
    """The database in a file, made if there is none. OSError, sqlite3.Error, IndexDamaged."""
    if path is None:
        raise FileNotFoundError
    is_new = not os.path.lexists(path)
    if not is_new and not _is_plain(path):
        raise IndexDamaged
    for last in (*(False,) * _TRIES, True):
        db = sqlite3.connect(path, **_OPTIONS)
        try:
            if is_new:
                os.chmod(path, 0o600)
            return _prepared(db)
        except BaseException as error:
            db.close()
            if last or "locked" not in str(error):
                raise
            time.sleep(_PAUSE_S)
    raise AssertionError("unreachable")


def _prepared(db: sqlite3.Connection) -> sqlite3.Connection:
    """The connection, once its tables are those of this release. IndexDamaged."""
    db.execute("PRAGMA trusted_schema = OFF")
    if not _tables(db):
        db.execute("BEGIN IMMEDIATE")
        for statement in () if _tables(db) else _SCHEMA:
            db.execute(statement)
        db.execute("COMMIT")
    if _tables(db) != set(_SCHEMA):
        raise IndexDamaged
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    return db


def _tables(db: sqlite3.Connection) -> set[str]:
    """What the tables, indices, triggers and views were made by."""
    rows = db.execute("SELECT sql FROM sqlite_master WHERE sql NOT NULL AND name != ?", (_OWN,))
    return {str(sql) for (sql,) in rows}


def _is_plain(path: Path) -> bool:
    return stat.S_ISREG(os.lstat(path).st_mode)


def inode_of(path: Path | None) -> int:
    """The file's number; 0 if there is none."""
    try:
        return 0 if path is None else os.lstat(path).st_ino
    except OSError:
        return 0


@contextlib.contextmanager
def explained_sqlite(path: Path | None) -> Iterator[None]:
    """Turns SQLite's errors into IndexDamaged, or SnapshotError if the file cannot be used now."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise SnapshotError(f"cannot use {path}: {error}; nothing was changed") from None
    except sqlite3.DatabaseError:
        raise IndexDamaged from None


def in_memory() -> sqlite3.Connection:
    """A database that ends with its connection."""
    return _prepared(sqlite3.connect(_IN_MEMORY, **_OPTIONS))
