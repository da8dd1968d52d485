"""What no snapshot of a store uses, found and removed in small steps.

1. The index is compared with both folders, without a lock: what others wrote is entered.
2. In steps of some milliseconds, with the store locked: snapshots that are in doubt are looked at,
   and packs that none needs are removed. Nobody saves meanwhile, and all that is there is entered.
3. Packs of which little is used are written anew beside writers. The store is locked again only to
   remove the old one, unless somebody began to need it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from isthmus.errors import SnapshotInvalid, SnapshotNotFound
from isthmus.snapshot.atomic import explained, sync_folder
from isthmus.snapshot.database import IndexDamaged
from isthmus.snapshot.index import (
    ALL_SNAPSHOTS,
    SHARED,
    THINNED,
    UNUSED,
    Index,
    IndexStale,
    KnownPack,
    KnownSnapshot,
)
from isthmus.snapshot.listing import stamp_of, stamps
from isthmus.snapshot.pack import Pack, open_pack, write_pack
from isthmus.snapshot.packs import enter_packs
from isthmus.snapshot.reader import Snapshot, open_snapshot

_STEP_S = 0.004
"""Seconds that one step keeps the store locked; savers wait for that long."""
_PAUSE_S = 0.002
"""Seconds between two steps, in which savers that wait get the store."""
_AT_ONCE = 64
_ENTERED_AT_ONCE = 16
"""Snapshots that are entered together: savers wait, and the disk is waited for once."""
_REWRITE_BELOW = 0.5
"""A pack of which less than this share is used is written anew."""
_MAX_USERS = 32
"""Snapshots that a quick collection reads to find out how much of one pack they use."""
_MAX_KEPT = 512
"""Snapshots whose chunks a collection remembers, since they need many packs each."""
_TRIES = 8


@dataclass(frozen=True)
class Collected:
    """What `gc` did."""

    n_packs_removed: int = 0
    n_packs_rewritten: int = 0
    nbytes_freed: int = 0

    def plus(self, other: Collected) -> Collected:
        """Both together."""
        return Collected(
            self.n_packs_removed + other.n_packs_removed,
            self.n_packs_rewritten + other.n_packs_rewritten,
            self.nbytes_freed + other.nbytes_freed,
        )


class Collection:
    """One collection of a store: `compare`, unless that was done, then `run`.

    Methods raise SnapshotError, and SnapshotInvalid if a snapshot cannot be read, since what it
    needs is not known then.
    """

    def __init__(
        self,
        snapshots: Path,
        packs: Path,
        index: Index,
        locked: Callable[[int], AbstractContextManager[None]],
    ) -> None:
        self._snapshots = snapshots
        self._packs = packs
        self._index = index
        self._locked = locked
        self._last = 0
        """The id of the last pack that was looked at."""
        self._most_doubt = SHARED
        self._thinned: list[KnownPack] = []
        self._chunks: dict[tuple[bytes, str], frozenset[bytes]] = {}

    def run(self, *, repack: bool, quick: bool) -> Collected:
        """Removes packs that no snapshot needs; with `repack` also chunks, but if `quick` only of
        packs that few snapshots need. IndexStale where not all is known."""
        self._most_doubt = THINNED if quick else SHARED
        done = Collected()
        while (step := self.step()) is not None:
            done = done.plus(step)
            time.sleep(_PAUSE_S)
        for pack in self._thinned if repack else ():
            done = done.plus(self._thin(pack, _MAX_USERS if quick else -1))
        with explained(self._packs):
            sync_folder(self._packs)
        return done

    def step(self) -> Collected | None:
        """What can be removed within some milliseconds; None at the end. Raises IndexStale if the
        index must be compared with the folder anew."""
        done = Collected()
        with self._locked(fcntl.LOCK_EX), self._index.together():
            if self._index.known < ALL_SNAPSHOTS:  # a new one, made since they were compared
                raise IndexStale
            end = time.monotonic() + _STEP_S
            while snapshots := self._index.doubtful_snapshots(_AT_ONCE):
                for snapshot in snapshots:
                    self._look_at(snapshot)
                    if time.monotonic() > end:
                        return done
            while packs := self._index.doubtful_packs(self._last, self._most_doubt, _AT_ONCE):
                for pack in packs:
                    self._last = pack.id
                    done = done.plus(self._judge(pack))
                    if time.monotonic() > end:
                        return done
        return done if done != Collected() else None

    # ------------------------------------------------------------------ comparing

    def compare(self) -> None:
        """Has the index know what is there, also what writers did that know no index."""
        enter_packs(self._packs, self._index)
        with explained(self._snapshots, "read"):
            there = stamps(self._snapshots)
        seen: dict[bytes, set[str]] = {}
        for it in self._index.snapshots():
            seen.setdefault(it.name, set()).add(it.stamp)
        new = [name for name, stamp in there.items() if stamp not in seen.get(name, ())]
        for first in range(0, len(new), _ENTERED_AT_ONCE):
            with self._index.together():
                for name in new[first : first + _ENTERED_AT_ONCE]:
                    self._enter(name)
        self._index.doubt(seen.keys() - there.keys())
        self._index.now_knows(ALL_SNAPSHOTS)

    def _enter(self, name: bytes) -> None:
        """Enters a snapshot that is on the disk."""
        with contextlib.suppress(SnapshotNotFound):
            stamp, snapshot = self._opened(name)
            self._index.finish(enter(self._index, name, snapshot), stamp)

    def _opened(self, name: bytes) -> tuple[str, Snapshot]:
        path = self._path(name)
        with explained(path, "read"):
            stamp = stamp_of(path)
        return stamp, open_snapshot(path)

    def _path(self, name: bytes) -> Path:
        return self._snapshots / os.fsdecode(name)

    # ------------------------------------------------------------------ removing

    def _look_at(self, known: KnownSnapshot) -> None:
        """Decides whether a snapshot is there. The store is locked."""
        try:
            stamp, snapshot = self._opened(known.name)
        except SnapshotNotFound:
            self._index.drop(known.id)
            return
        if snapshot.id == known.sha256:
            if not known.stamp:
                self._enter(known.name)
            self._index.confirm(known.id, stamp)
        else:
            self._enter(known.name)
            self._index.drop(known.id)

    def _judge(self, pack: KnownPack) -> Collected:
        """Removes a pack if no snapshot needs it. The store is locked."""
        if not self._index.users(pack, 1):
            return self._remove(pack, None)
        if pack.doubt == UNUSED:
            self._index.settle(pack)
        else:
            self._thinned.append(pack)
        return Collected()

    def _remove(self, pack: KnownPack, by: Pack | None) -> Collected:
        path = self._packs / pack.name
        try:
            digests = open_pack(path).digests
        except (SnapshotInvalid, SnapshotNotFound):  # others' business, or gone
            self._index.forget(pack)
            return Collected()
        with explained(path):
            path.unlink()
        self._index.remove(pack, digests)
        if by is None:
            return Collected(1, 0, pack.nbytes)
        return Collected(0, 1, pack.nbytes - by.nbytes)

    def _thin(self, known: KnownPack, most: int) -> Collected:
        """Writes a pack anew if little of it is used, unless more than `most` snapshots need it."""
        with self._locked(fcntl.LOCK_SH):
            users = self._index.users(known, most)
            if len(users) == most:
                self._index.settle(known, SHARED)
                return Collected()
            try:
                pack = open_pack(self._packs / known.name)
                used = self._used_by(users)
            except SnapshotNotFound:
                return Collected()
            live = [i for i, digest in enumerate(pack.digests) if digest in used]
            if len(live) >= _REWRITE_BELOW * len(pack.digests):
                self._index.settle(known)
                return Collected()
            digests = [pack.digests[i] for i in live]
            new = write_pack(self._packs, zip(digests, pack.verified(live), strict=True))
            if new is not None:
                self._index.add_packs([(new.path.name, new.nbytes, new.digests)])
                self._index.also_need(users, self._index.id_of_pack(new.path.name))
        with self._locked(fcntl.LOCK_EX):
            if self._index.users(known) == users:
                return self._remove(known, new)
        return Collected()

    def _used_by(self, users: list[KnownSnapshot]) -> set[bytes]:
        """The chunks of snapshots. SnapshotNotFound if one of them is another one by now."""
        used: set[bytes] = set()
        for user in users:
            which = (user.name, user.sha256)
            if which not in self._chunks:
                if len(self._chunks) >= _MAX_KEPT:
                    self._chunks.clear()
                _, snapshot = self._opened(user.name)
                if snapshot.id != user.sha256:
                    raise SnapshotNotFound(f"{snapshot.path} was replaced")
                self._chunks[which] = frozenset(snapshot.chunks.values())
            used |= self._chunks[which]
        return used


def enter(index: Index, name: bytes, snapshot: Snapshot) -> int:
    """Enters a snapshot whose chunks are in packs that are known, or not; returns its id. Raises
    IndexDamaged if the index stays behind the folder."""
    digests = set(snapshot.chunks.values())
    for _ in range(_TRIES):
        places = index.places(digests)
        try:
            needs, lacks = set(places.values()), digests - places.keys()
            return index.begin(name, snapshot.id, needs, lacks=lacks)
        except IndexStale:
            index.recall()
    raise IndexDamaged
