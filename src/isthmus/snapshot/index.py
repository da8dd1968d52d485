"""What lies where in a store: the chunks of each pack, and the packs that each snapshot needs.

A cache in SQLite, so that nobody opens all packs to find one chunk. Whatever it says is checked
against the files before it counts, and it is made anew if it is damaged or missing. One rule makes
it safe to remove packs by: a writer enters its snapshot, marked as doubtful, before the file gets
its name. So every snapshot that is on the disk is in the index, or is found by `Collection`, which
compares the folder with the index before it removes anything.

Where nothing can be written the index is in memory, for as long as somebody reads.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Collection as Many
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.snapshot.access import Access
from isthmus.snapshot.database import IndexDamaged
from isthmus.snapshot.listing import PACK_NAME

INDEX_FILE = "index.sqlite"
NOTHING, ALL_PACKS, ALL_SNAPSHOTS = 0, 1, 2
_AT_ONCE = 500
"""Values in one statement: SQLite before 3.32 takes 999."""
_MAX_RECENT = 1 << 18
"""Digests whose pack is remembered in memory, about 40 MiB: an agent's next save asks for nearly
all of those again, and a look into the index costs some microseconds each."""
UNUSED, THINNED, SHARED = 1, 2, 3
"""Doubts about a pack: that nobody needs it; that few of its chunks are needed any more; the same
of a pack that many snapshots need, so that it takes long to find out."""


class IndexStale(Exception):
    """A pack that was found has been removed meanwhile: look again."""


@dataclass(frozen=True)
class KnownPack:
    """A pack as the index has it. `doubt` is 0, UNUSED or THINNED."""

    id: int
    name: str
    nbytes: int
    doubt: int

    def __post_init__(self) -> None:
        numbers = isinstance(self.nbytes, int) and isinstance(self.doubt, int)
        if not numbers or not isinstance(self.name, str) or not PACK_NAME.fullmatch(self.name):
            raise IndexDamaged


@dataclass(frozen=True)
class KnownSnapshot:
    """A snapshot as the index has it; `name` is its file's. Doubtful: it may not be there."""

    id: int
    name: bytes
    sha256: str
    stamp: str
    doubt: int

    def __post_init__(self) -> None:
        texts = isinstance(self.sha256, str) and isinstance(self.stamp, str)
        if not texts or not isinstance(self.name, bytes) or b"/" in self.name or b"\0" in self.name:
            raise IndexDamaged


class Index:
    """See the module. Used by several threads, and by several processes. Methods raise
    SnapshotError if it cannot be written, and IndexDamaged."""

    def __init__(self, folder: Path | None) -> None:
        """The index of the store in a folder, or one in memory."""
        self._recent: dict[bytes, int] = {}
        path = None if folder is None else folder / INDEX_FILE
        self._access = access = Access(path, self._recent.clear)
        self._reading, self._writing = access.reading, access.writing

    @property
    def known(self) -> int:
        """How much of the store it has had, once, and by writers since: NOTHING, ALL_PACKS, or
        ALL_SNAPSHOTS, which includes those."""
        with self._reading() as db:
            return int(db.execute("PRAGMA user_version").fetchone()[0])

    def now_knows(self, what: int) -> None:
        """Notes that it has as much, or more."""
        if self.known < what:
            with self._writing() as db:
                db.execute(f"PRAGMA user_version = {what}")

    def together(self) -> AbstractContextManager[object]:
        """What this thread writes while open counts all at once, or not at all, and the disk is
        waited for once. Others wait meanwhile."""
        return self._writing()

    def close(self) -> None:
        """Closes the file; the next use opens it again."""
        self._access.close()

    def discard(self) -> None:
        """Removes the file. Nobody may be saving into the store."""
        self._access.discard()

    # ------------------------------------------------------------------ packs

    def places(self, digests: Iterable[bytes]) -> dict[bytes, int]:
        """The id of a pack for each chunk that is known."""
        wanted = list(digests)
        with self._reading() as db:
            found: dict[bytes, Any] = dict(zip(wanted, map(self._recent.get, wanted), strict=True))
            missing = sorted(digest for digest, pack in found.items() if pack is None)
            for part in _parts(missing):
                rows = db.execute(
                    f"SELECT digest, pack FROM chunk WHERE digest IN {_marks(part)}", part
                )
                found.update(rows)
            for it in missing:
                if found[it] is None:
                    del found[it]
            self._remember({it: found[it] for it in missing if it in found})
        return found

    def packs(self, ids: Iterable[int]) -> list[KnownPack]:
        """The packs of those ids that are still there."""
        with self._reading() as db:
            return [
                KnownPack(*row)
                for part in _parts(sorted(set(ids)))
                for row in db.execute(
                    f"SELECT id, name, nbytes, doubt FROM pack WHERE id IN {_marks(part)}", part
                )
            ]

    def needed_by(self, sha256: str) -> list[KnownPack]:
        """The packs that a snapshot needs, as far as that is known."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT DISTINCT pack.id, pack.name, nbytes, pack.doubt FROM snapshot"
                " JOIN need ON need.snapshot = snapshot.id JOIN pack ON pack.id = need.pack"
                " WHERE sha256 = ?",
                (sha256,),
            )
            return [KnownPack(*row) for row in rows]

    def packs_needed(self, beginnings: Iterable[bytes]) -> set[int]:
        """The ids of packs that snapshots need whose names begin with one of these."""
        with self._reading() as db:
            return {
                pack
                for it in beginnings
                for (pack,) in db.execute(
                    "SELECT DISTINCT pack FROM snapshot JOIN need ON need.snapshot = snapshot.id"
                    " WHERE name >= ? AND name < ?",
                    (it, it + b"\xff"),
                )
            }

    def nbytes_of_packs(self) -> int:
        """Bytes of all packs together."""
        with self._reading() as db:
            return int(db.execute("SELECT TOTAL(nbytes) FROM pack").fetchone()[0])

    def recall(self) -> None:
        """Forgets what was remembered in memory, since a pack of it is gone."""
        with self._access.lock:
            self._recent.clear()

    def pack_names(self) -> set[str]:
        """All packs that are known."""
        with self._reading() as db:
            return {name for (name,) in db.execute("SELECT name FROM pack")}

    def add_packs(self, packs: Iterable[tuple[str, int, Many[bytes]]], doubt: int = UNUSED) -> None:
        """Enters packs, as (name, length, digests), which nobody needs yet, but for snapshots that
        lacked a chunk of them."""
        with self._writing() as db:
            for name, nbytes, digests in packs:
                _add_pack(db, name, nbytes, digests, doubt)

    def doubtful_packs(self, after: int, most: int, n: int) -> list[KnownPack]:
        """Up to `n` packs, with ids above `after` and doubts up to `most`, that may have to go."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT id, name, nbytes, doubt FROM pack WHERE doubt > 0 AND doubt <= ?"
                " AND id > ? ORDER BY id LIMIT ?",
                (most, after, n),
            )
            return [KnownPack(*row) for row in rows]

    def settle(self, pack: KnownPack, doubt: int = 0) -> None:
        """Doubts no more about a pack, or as much as is said."""
        with self._writing() as db:
            db.execute("UPDATE pack SET doubt = ? WHERE id = ?", (doubt, pack.id))

    def forget(self, pack: KnownPack, digests: Iterable[bytes] | None = None) -> None:
        """Drops a pack that is gone, or is damaged. Snapshots that needed it are looked at anew by
        the next collection. `digests` are its chunks, if they are known."""
        with self._writing() as db:
            db.execute(
                "UPDATE snapshot SET stamp = '', doubt = 1 WHERE id IN"
                " (SELECT snapshot FROM need WHERE pack = ?)",
                (pack.id,),
            )
            _drop_pack(db, pack.id, digests)
            self._recent.clear()

    def forget_named(self, name: str) -> None:
        """Drops a pack that is gone, as `forget` does."""
        with contextlib.suppress(IndexStale):
            for pack in self.packs([self.id_of_pack(name)]):
                self.forget(pack)

    def also_need(self, users: Iterable[KnownSnapshot], pack: int) -> None:
        """Notes that snapshots need one more pack."""
        with self._writing() as db:
            rows = ((pack, user.id) for user in users)
            db.executemany("INSERT OR IGNORE INTO need VALUES (?, ?)", rows)

    def remove(self, pack: KnownPack, digests: Iterable[bytes]) -> None:
        """Drops a pack that was removed, since nobody needs it, or since all need another one."""
        with self._writing() as db:
            _drop_pack(db, pack.id, digests)
            self._recent.clear()

    def id_of_pack(self, name: str) -> int:
        """The id of a pack that is there. IndexStale."""
        with self._reading() as db:
            row = db.execute("SELECT id FROM pack WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise IndexStale
        return int(row[0])

    # ------------------------------------------------------------------ snapshots

    def snapshots(self) -> list[KnownSnapshot]:
        """All snapshots that are known."""
        return self._snapshots("", ())

    def doubtful_snapshots(self, n: int) -> list[KnownSnapshot]:
        """Up to `n` snapshots that may not be there."""
        return self._snapshots("WHERE doubt > 0 LIMIT ?", (n,))

    def users(self, pack: KnownPack, most: int = -1) -> list[KnownSnapshot]:
        """The snapshots that need a pack, or as many of them as are asked for."""
        where = "WHERE id IN (SELECT snapshot FROM need WHERE pack = ? LIMIT ?)"
        return self._snapshots(where, (pack.id, most))

    def _snapshots(self, where: str, values: tuple[object, ...]) -> list[KnownSnapshot]:
        with self._reading() as db:
            rows = db.execute(
                f"SELECT id, name, sha256, stamp, doubt FROM snapshot {where}", values
            )
            return [KnownSnapshot(*row) for row in rows]

    def begin(
        self,
        name: bytes,
        sha256: str,
        needs: Many[int],
        *,
        pack: tuple[str, int, Many[bytes]] | None = None,
        lacks: Iterable[bytes] = (),
    ) -> int:
        """Enters a snapshot whose file is about to appear, and the new pack that it came with;
        returns its id. IndexStale if one of the packs that it needs is not known any more."""
        with self._writing() as db:
            db.execute("UPDATE snapshot SET doubt = 1 WHERE name = ?", (name,))
            db.execute("INSERT OR IGNORE INTO snapshot VALUES (NULL, ?, ?, '', 1)", (name, sha256))
            (id_,) = db.execute(
                "SELECT id FROM snapshot WHERE name = ? AND sha256 = ?", (name, sha256)
            ).fetchone()
            known = sum(
                db.execute(
                    f"SELECT count(*) FROM pack WHERE id IN {_marks(part)}", part
                ).fetchone()[0]
                for part in _parts(list(needs))
            )
            if known != len(needs):
                raise IndexStale
            every = set(needs)
            new = None if pack is None else _add_pack(db, *pack, UNUSED)
            every |= {new} if new is not None else set()
            db.executemany("INSERT OR IGNORE INTO need VALUES (?, ?)", ((it, id_) for it in every))
            db.execute("DELETE FROM lack WHERE snapshot = ?", (id_,))
            db.executemany("INSERT OR IGNORE INTO lack VALUES (?, ?)", ((it, id_) for it in lacks))
        if pack is not None and new is not None:
            self._remember(dict.fromkeys(pack[2], new))
        return int(id_)

    def finish(self, id_: int, stamp: str) -> None:
        """Notes that a snapshot's file is there, unless another one of its name may be."""
        with self._writing() as db:
            db.execute(
                "UPDATE snapshot SET stamp = ?, doubt = EXISTS (SELECT 1 FROM snapshot AS other"
                " WHERE other.name = snapshot.name AND other.id != snapshot.id) WHERE id = ?",
                (stamp, id_),
            )

    def confirm(self, id_: int, stamp: str) -> None:
        """Notes that a snapshot's file was seen, while nobody could replace it."""
        with self._writing() as db:
            db.execute("UPDATE snapshot SET stamp = ?, doubt = 0 WHERE id = ?", (stamp, id_))

    def doubt(self, names: Iterable[bytes]) -> None:
        """Notes that snapshots may be gone, or be others."""
        with self._writing() as db:
            db.executemany("UPDATE snapshot SET doubt = 1 WHERE name = ?", ((it,) for it in names))

    def drop(self, id_: int) -> None:
        """Forgets a snapshot that is not there. Packs that it needed become doubtful."""
        with self._writing() as db:
            db.execute(
                "UPDATE pack SET doubt = ? WHERE id IN (SELECT pack FROM need WHERE snapshot = ?)",
                (THINNED, id_),
            )
            for table, column in (("need", "snapshot"), ("lack", "snapshot"), ("snapshot", "id")):
                db.execute(f"DELETE FROM {table} WHERE {column} = ?", (id_,))

    # ------------------------------------------------------------------ the database

    def _remember(self, places: dict[bytes, int]) -> None:
        if len(self._recent) + len(places) > _MAX_RECENT:
            self._recent.clear()
        self._recent.update(places)


def _add_pack(
    db: sqlite3.Connection, name: str, nbytes: int, digests: Many[bytes], doubt: int
) -> int:
    db.execute("INSERT OR IGNORE INTO pack VALUES (NULL, ?, ?, ?)", (name, nbytes, doubt))
    (id_,) = db.execute("SELECT id FROM pack WHERE name = ?", (name,)).fetchone()
    rows = ((digest, id_) for digest in sorted(digests))
    db.executemany("INSERT OR IGNORE INTO chunk VALUES (?, ?)", rows)
    if db.execute("SELECT 1 FROM lack LIMIT 1").fetchone():
        for part in _parts(sorted(digests)):
            marks = _marks(part)
            db.execute(
                f"INSERT OR IGNORE INTO need SELECT ?, snapshot FROM lack WHERE digest IN {marks}",
                (id_, *part),
            )
            db.execute(f"DELETE FROM lack WHERE digest IN {marks}", part)
    return int(id_)


def _drop_pack(db: sqlite3.Connection, id_: int, digests: Iterable[bytes] | None) -> None:
    if digests is None:  # all chunks have to be looked at
        db.execute("DELETE FROM chunk WHERE pack = ?", (id_,))
    else:
        rows = ((digest, id_) for digest in digests)
        db.executemany("DELETE FROM chunk WHERE digest = ? AND pack = ?", rows)
    db.execute("DELETE FROM need WHERE pack = ?", (id_,))
    db.execute("DELETE FROM pack WHERE id = ?", (id_,))


def _parts(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (values[at : at + _AT_ONCE] for at in range(0, len(values), _AT_ONCE))


def _marks(values: Sequence[Any]) -> str:
    return f"({','.join('?' * len(values))})"
