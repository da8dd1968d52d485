"""The database of an index, while one thread of one process has it to itself.

It is the file that its path leads to at that moment: another process may have removed it, or the
whole folder, and made another. Where no file can be written it is in memory.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from isthmus.snapshot.database import SUFFIXES, Database, explained_sqlite, locked

_UNDO_PART = ("ROLLBACK TO part", "RELEASE part")


class Access:
    """See the module. Methods raise SnapshotError if the database cannot be used now, and
    IndexDamaged."""

    def __init__(self, path: Path | None, changed: Callable[[], None]) -> None:
        """`changed` is called before another database takes the place of the one that was used."""
        self._path = path
        self._changed = changed
        self.lock = threading.RLock()
        """Held by the thread that has the database."""
        self._database: Database | None = None
        self._finalizer: weakref.finalize[..., Any] | None = None
        self._has_it = False
        """Whether the thread that has `lock` has the database to itself."""

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The database, while nobody else uses it."""
        with self.lock, explained_sqlite(self._path), self._alone() as database:
            yield database.db

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """The same; what is written counts all at once at the end, or not at all if that raises.

        What a thread writes inside of its own `writing` is a part of it that may be taken back
        alone. The disk is waited for once, at the end of the whole.
        """
        with self.reading() as db:
            inner = db.in_transaction
            db.execute("SAVEPOINT part" if inner else "BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("RELEASE part" if inner else "COMMIT")
            except BaseException:
                if db.in_transaction:  # SQLite ends it by itself after some errors
                    for it in _UNDO_PART if inner else ("ROLLBACK",):
                        db.execute(it)
                raise

    def close(self) -> None:
        """Closes the file; the next use opens it again."""
        with self.lock:
            self._let_go()

    def discard(self) -> None:
        """Removes the file. What cannot be removed is used no more."""
        with self.lock:
            path = self._path
            self._let_go()
            if path is None:
                return
            with contextlib.suppress(OSError), locked(path):
                for suffix in SUFFIXES:
                    with contextlib.suppress(OSError):
                        os.unlink(f"{path}{suffix}")
            if any(os.path.lexists(f"{path}{suffix}") for suffix in SUFFIXES[:2]):
                self._path = None  # a folder in its place, which nobody asked us to remove

    @contextlib.contextmanager
    def _alone(self) -> Iterator[Database]:
        if self._has_it:
            assert self._database is not None
            yield self._database
            return
        with contextlib.ExitStack() as stack:
            database: Database | None = None
            if self._path is not None:
                with contextlib.suppress(OSError, sqlite3.OperationalError):  # cannot be written
                    stack.enter_context(locked(self._path))
                    database = self._in_file(self._path)
            self._keep(database or self._in_memory())
            self._has_it = True
            try:
                assert self._database is not None
                yield self._database
            finally:
                self._has_it = False

    def _in_file(self, path: Path) -> Database:
        """The database of the file that is there now, opened by this process."""
        found = self._database
        if found is not None and found.in_file and not found.inherited and found.current:
            return found
        self._let_go()
        return Database(path)

    def _in_memory(self) -> Database:
        """What is kept for as long as there can be no file."""
        if self._database is None or self._database.in_file:
            self._let_go()
            return Database(None)
        return self._database

    def _keep(self, database: Database) -> None:
        """Has it closed with this object at the latest."""
        if database is not self._database:
            self._database = database
            self._finalizer = weakref.finalize(self, _close, database)

    def _let_go(self) -> None:
        database, self._database = self._database, None
        if self._finalizer is not None:
            self._finalizer.detach()
        self._changed()
        if database is not None:
            _close(database)


def _close(database: Database) -> None:
    if database.inherited:
        _abandoned.append(database)  # closing it would be the parent's business
    else:
        database.db.close()


_abandoned: list[Database] = []
"""Those of a process that this one was forked from."""
