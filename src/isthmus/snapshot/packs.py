"""The chunks of a store, found by their hashes: the index says where, and the packs must agree.

A pack may vanish at any moment, since another process removes it or moves its chunks into another
one. That matters only if a chunk is needed that no pack has.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TypeVar

from isthmus.errors import SnapshotError, SnapshotInvalid, SnapshotNotFound
from isthmus.memory import Extent, Image
from isthmus.memory.quota import FILES
from isthmus.snapshot.atomic import explained
from isthmus.snapshot.chunk import CHUNK_NBYTES, Chunks
from isthmus.snapshot.database import IndexDamaged
from isthmus.snapshot.index import ALL_PACKS, SHARED, Index, KnownPack
from isthmus.snapshot.listing import nothing_removed, pack_names
from isthmus.snapshot.pack import Pack, open_pack
from isthmus.snapshot.regular import open_regular

_MAX_OPEN = 64
"""Packs that one image keeps open, or fewer where few more files may be opened."""
_TRIES = 8
"""How often packs that vanish are looked for anew: once for each collection that comes between."""
_AT_ONCE = 256
"""Packs that are entered into the index together."""
_T = TypeVar("_T")


class Packs:
    """The packs of a store that one snapshot needs. Opens none before a chunk is asked for.

    Methods raise SnapshotInvalid if a chunk is missing or damaged, and SnapshotError if a pack
    cannot be read now.
    """

    def __init__(self, folder: Path, sha256: str, chunks: Chunks, index: Index | None) -> None:
        """`folder` has the packs; `sha256` is the snapshot's id; `chunks` are its chunks."""
        self._folder = folder
        self._sha256 = sha256
        self._chunks = chunks
        self._index = Index(folder.parent) if index is None else index
        self._packs: list[Pack] = []
        self._places: dict[bytes, tuple[int, int]] = {}
        """The number of a pack in `_packs`, and of the chunk in it."""
        self._refused: SnapshotError | None = None
        self._whole = False
        """Whether all places are known."""

    def lacks(self) -> bool:
        """Whether a chunk is in no pack."""
        return bool(self._missing_after_search())

    def holding(self) -> list[Path]:
        """The packs that the snapshot's chunks are in."""
        return self._surely(
            lambda: [
                self._packs[it].path
                for it in sorted({self._places[digest][0] for digest in self._chunks.values()})
            ]
        )

    def read(self, digest: bytes) -> bytes:
        """A chunk's bytes, compared with its hash."""

        def read() -> bytes:
            number, index = self._places[digest]
            return next(self._packs[number].verified([index]))

        return self._surely(read)

    def image(self, nbytes: int, used: Sequence[tuple[int, int]]) -> Image:
        """The memory of `nbytes`, of which `used` is not zero.

        Its packs are mapped, or brought together where they are too many to keep open.
        """
        return self._surely(lambda: self._image(nbytes, used))

    def _image(self, nbytes: int, used: Sequence[tuple[int, int]]) -> Image:
        places = [(number, *self._places[digest]) for number, digest in self._chunks.items()]
        needed = sorted({pack for _, pack, _ in places})
        if len(needed) > min(_MAX_OPEN, FILES.n_left // 4):
            return Image.gather(nbytes, self._pieces(places), used)
        files = {pack: open_regular(self._packs[pack].path) for pack in needed}
        extents = (
            Extent(
                number * CHUNK_NBYTES,
                CHUNK_NBYTES,
                files[pack],
                self._packs[pack].data_offset + index * CHUNK_NBYTES,
            )
            for number, pack, index in places
        )
        return Image(nbytes, extents, used)

    def _pieces(self, places: Iterable[tuple[int, int, int]]) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) of chunks, pack by pack."""
        for pack, group in groupby(sorted(places, key=itemgetter(1)), key=itemgetter(1)):
            numbers, _, indices = zip(*group, strict=True)
            for number, data in zip(numbers, self._packs[pack].read(indices), strict=True):
                yield number * CHUNK_NBYTES, data

    # ------------------------------------------------------------------ looking

    def _surely(self, use: Callable[[], _T]) -> _T:
        """What `use` gives once all chunks are found, and no pack vanished under it."""
        for _ in range(_TRIES):
            if missing := self._missing_after_search():
                raise self._refused or SnapshotInvalid(
                    f"the store has no chunk {min(missing).hex()[:16]}…, which the snapshot needs"
                )
            try:
                return use()
            except SnapshotNotFound:
                self._packs, self._places, self._whole = [], {}, False
        raise SnapshotError(f"{self._folder} changes faster than it can be read: try again")

    def _missing_after_search(self) -> set[bytes]:
        if self._whole:
            return set()
        missing = self._searched()
        if missing:  # or moved from pack to pack while they were listed
            with nothing_removed(self._folder.parent):
                missing = self._searched()
        self._whole = not missing
        return missing

    def _searched(self) -> set[bytes]:
        """As `_search`, also if the index is damaged."""
        try:
            return self._search()
        except IndexDamaged:  # whoever writes makes it anew
            self._index = Index(None)
            return self._search()

    def _search(self) -> set[bytes]:
        """Finds the chunks' places; returns those that have none."""
        wanted = set(self._chunks.values())
        if self._index.known < ALL_PACKS:
            enter_packs(self._folder, self._index)
        missing = self._open(self._index.needed_by(self._sha256), wanted)
        for again in (False, True):
            if missing and again:
                enter_packs(self._folder, self._index)
            if missing:
                ids = self._index.places(missing).values()
                missing = self._open(self._index.packs(ids), wanted)
        return missing

    def _open(self, packs: Iterable[KnownPack], wanted: set[bytes]) -> set[bytes]:
        """Opens packs; returns what is still missing. One that is gone or damaged is passed over
        and forgotten: its chunks may be elsewhere."""
        for known in packs:
            try:
                pack = open_pack(self._folder / known.name)
            except (SnapshotNotFound, SnapshotInvalid) as error:
                if isinstance(error, SnapshotInvalid):
                    self._refused = error
                self._index.forget(known)
                continue
            for index, digest in enumerate(pack.digests):
                self._places[digest] = (len(self._packs), index)
            self._packs.append(pack)
        return wanted - self._places.keys()


def enter_packs(folder: Path, index: Index) -> None:
    """Has the index know the packs that are in the folder, and forget those that are not.

    What is no pack, or is damaged, is left alone. SnapshotError if the folder cannot be read.
    """
    with explained(folder, "read"):
        there = pack_names(folder)
    known = index.pack_names()
    for name in known - there:
        if not os.path.lexists(folder / name):
            index.forget_named(name)
    entries: list[tuple[str, int, Sequence[bytes]]] = []
    for name in sorted(there - known):
        try:
            pack = open_pack(folder / name)
        except (SnapshotNotFound, SnapshotInvalid):
            continue
        entries.append((name, pack.nbytes, pack.digests))
        if len(entries) == _AT_ONCE:
            index.add_packs(entries, SHARED)
            entries.clear()
    index.add_packs(entries, SHARED)
    index.now_knows(ALL_PACKS)
