"""A folder of snapshots that share their chunks: what two of them have alike is stored once.

::

    STORE/lock                               taken shared by writers, alone by `gc`
    STORE/snapshots/NAME.safetensors         a manifest, its parts, and no memory
    STORE/packs/SHA256.pack.safetensors      chunks
    STORE/index.sqlite                       which pack has which chunk: a cache, see `index`

A snapshot writes one pack with the chunks that are new, and then its manifest. Both appear whole
or not at all, in this order, so a crash leaves at most a pack that nobody uses, for `gc`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from isthmus.errors import SettingsError, SnapshotError, SnapshotInvalid, SnapshotNotFound
from isthmus.snapshot.atomic import AtomicFile, explained, sweep, sync_folder
from isthmus.snapshot.chunk import CHUNK_NBYTES
from isthmus.snapshot.collection import Collected, Collection, enter
from isthmus.snapshot.database import IndexDamaged
from isthmus.snapshot.draft import Draft, Saved, save_recipe
from isthmus.snapshot.index import ALL_PACKS, ALL_SNAPSHOTS, Index, IndexStale
from isthmus.snapshot.listing import LOCK_FILE, SUFFIX, stamp_of
from isthmus.snapshot.pack import unpack, write_pack
from isthmus.snapshot.packs import enter_packs
from isthmus.snapshot.reader import PACKS_FOLDER, Snapshot, open_snapshot

SNAPSHOTS_FOLDER = "snapshots"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TRIES = 8
_MAX_NAMES = 20
"""Names that an error lists."""
_T = TypeVar("_T")


class Store:
    """See the module. Keeps only its index open; safe to use from several processes and threads."""

    def __init__(self, folder: str | Path, *, create: bool = True) -> None:
        """Opens a store; with `create`, a folder that is missing or empty becomes one."""
        with explained(Path(folder), "open"):
            self.folder = folder = Path(folder).expanduser()
            self._snapshots = folder / SNAPSHOTS_FOLDER
            self._packs = folder / PACKS_FOLDER
            self._require_store(create)
            for part in (folder, self._snapshots, self._packs):
                part.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._index = Index(folder)
        self._swept = False
        self._compared = False
        """Whether the index was compared with the folders since this was made."""

    def _require_store(self, create: bool) -> None:
        folder = self.folder
        if not create and not self._snapshots.is_dir():
            raise SnapshotNotFound(f"{folder} is not a store of snapshots")
        for part in (folder, self._snapshots, self._packs):
            if part.is_symlink():
                raise SnapshotError(f"{part} is a symbolic link; give the folder itself")
        if folder.is_dir() and not self._snapshots.is_dir() and any(folder.iterdir()):
            raise SnapshotError(
                f"{folder} is neither empty nor a store; give a new folder, or the name of a file"
            )

    def path(self, name: str) -> Path:
        """Where the snapshot of that name lies; SettingsError for what is not a name."""
        if not _NAME.fullmatch(name):
            raise SettingsError(
                f"{name!r} is no name for a snapshot: give letters, digits, dots, - and _"
            )
        return self._snapshots / f"{name}{SUFFIX}"

    def name_of(self, path: Path) -> str:
        """The name of the snapshot at `path`; SnapshotNotFound where that is not in this store."""
        name = path.name.removesuffix(SUFFIX)
        if path.resolve() != self.path(name).resolve():
            raise SnapshotNotFound(f"{path} is not a snapshot of the store {self.folder}")
        return name

    def names(self) -> list[str]:
        """The names of all snapshots. SnapshotError if the folder cannot be read."""
        with explained(self._snapshots, "read"):
            found = os.listdir(self._snapshots)
        names = (it.removesuffix(SUFFIX) for it in found if it.endswith(SUFFIX))
        return sorted(filter(_NAME.fullmatch, names))

    def nbytes_of(self, beginnings: Iterable[str]) -> int:
        """Bytes that snapshots take, files and packs, whose names begin with one of these texts.

        A pack that several of them need counts once, and whole.
        """
        return self._with_index(lambda: self._nbytes_of(tuple(beginnings)))

    def _nbytes_of(self, beginnings: tuple[str, ...]) -> int:
        with self._locked(fcntl.LOCK_SH):
            packs = self._index.packs(self._index.packs_needed(map(os.fsencode, beginnings)))
        nbytes = sum(pack.nbytes for pack in packs)
        for name in self.names():
            if name.startswith(beginnings):
                nbytes += max(0, _nbytes_of(self.path(name)))
        return nbytes

    def nbytes_of_packs(self) -> int:
        """Bytes of all packs that are known."""
        return self._with_index(self._index.nbytes_of_packs)

    def save(self, draft: Draft, name: str | None = None, key: bytes | None = None) -> Saved:
        """Writes the chunks that are new, then the snapshot, replacing one of the same name.

        By default its name is the first 16 digits of its id.
        """
        path = self.path(draft.id[:16] if name is None else name)
        return self._with_index(lambda: self._save(draft, path, key))

    def _save(self, draft: Draft, path: Path, key: bytes | None) -> Saved:
        self._sweep_once()
        with self._locked(fcntl.LOCK_SH):
            if self._index.known < ALL_PACKS:
                enter_packs(self._packs, self._index)
            places = self._places(draft)
            new: dict[bytes, int] = {}
            for number, digest in draft.memory.chunks.items():
                if digest not in places:
                    new.setdefault(digest, number)
            view = draft.memory.view
            pack = write_pack(
                self._packs,
                ((digest, view(n * CHUNK_NBYTES, CHUNK_NBYTES)) for digest, n in new.items()),
            )
            entry = None if pack is None else (pack.path.name, pack.nbytes, pack.digests)
            name = os.fsencode(path.name)
            id_ = self._index.begin(name, draft.id, set(places.values()), pack=entry)
            saved = save_recipe(draft, path, key)
            self._finish(id_, path)
        return replace(
            saved,
            nbytes_written=saved.nbytes_written + (pack.nbytes if pack else 0),
            n_chunks_written=len(new),
        )

    def _places(self, draft: Draft) -> dict[bytes, int]:
        """The packs of chunks that need not be written. Each was seen to be there."""
        for _ in range(_TRIES):
            places = self._index.places(draft.memory.chunks.values())
            ids = set(places.values())
            packs = self._index.packs(ids)
            gone = [it for it in packs if _nbytes_of(self._packs / it.name) != it.nbytes]
            for pack in gone:
                self._index.forget(pack)
            if len(packs) < len(ids):
                self._index.recall()
            elif not gone:
                return places
        raise IndexDamaged

    def add(self, name: str, data: bytes, id_: str) -> None:
        """Takes a snapshot's file out of another store. SnapshotInvalid unless it has that id.

        Its packs are missing here until `add_pack`.
        """
        self._with_index(lambda: self._add(self.path(name), data, id_))

    def _add(self, path: Path, data: bytes, id_: str) -> None:
        name = path.name.removesuffix(SUFFIX)
        self._sweep_once()
        with self._locked(fcntl.LOCK_SH), AtomicFile(path, swept=True) as file:
            file.write(data, 0)
            try:
                found = open_snapshot(file.temporary)
            except SnapshotError as error:
                raise SnapshotInvalid(str(error).replace(str(file.temporary), name)) from None
            if found.id != id_:
                raise SnapshotInvalid(f"{name} is snapshot {found.id[:12]}… and not {id_[:12]}…")
            number = enter(self._index, os.fsencode(path.name), found)
            file.commit(len(data))
            self._finish(number, path)

    def _finish(self, number: int, path: Path) -> None:
        """Notes that a snapshot is there. It is, also if that cannot be noted: `gc` will see."""
        with contextlib.suppress(SnapshotError, IndexDamaged), explained(path, "read"):
            self._index.finish(number, stamp_of(path))

    def has_pack(self, name: str) -> bool:
        """Whether a pack of that file name is here."""
        return (self._packs / name).exists()

    def add_pack(self, name: str, data: bytes) -> None:
        """Takes a pack out of another store. SnapshotInvalid where a byte of it is another."""
        self._with_index(lambda: self._add_pack(name, data))

    def _add_pack(self, name: str, data: bytes) -> None:
        with self._locked(fcntl.LOCK_SH):
            pack = write_pack(self._packs, unpack(self._packs / name, data))
            assert pack is not None, "no pack is empty"
            self._index.add_packs([(pack.path.name, pack.nbytes, pack.digests)])

    def open(self, name: str, key: bytes | None = None) -> Snapshot:
        """Opens the snapshot of that name."""
        with self._locked(fcntl.LOCK_SH):
            return open_snapshot(self.path(name), key, self._index)

    def id_of(self, base: Saved | str, key: bytes | None = None) -> str:
        """The id of a snapshot here, by name or as it was saved; SnapshotNotFound for none such."""
        name = base if isinstance(base, str) else self.name_of(base.path)
        found = self.open(name, key).id
        if isinstance(base, Saved) and base.id != found:
            raise SnapshotNotFound(f"the snapshot {name!r} was replaced since it was saved")
        return found

    def delete(self, name: str) -> None:
        """Removes a snapshot; its chunks go with the next `gc`. Raises SnapshotNotFound."""
        if not self.delete_all([name]):
            raise SnapshotNotFound(f"there is no snapshot {name!r} in {self.folder}")

    def delete_all(self, names: Iterable[str]) -> int:
        """Removes snapshots, as far as they are there; says how many were."""
        gone = []
        for name in names:
            path = self.path(name)
            with explained(path), contextlib.suppress(FileNotFoundError):
                path.unlink()
                gone.append(os.fsencode(path.name))
        if gone:
            with explained(self._snapshots):
                sync_folder(self._snapshots)
            with contextlib.suppress(IndexDamaged):
                self._index.doubt(gone)
        return len(gone)

    def gc(self, *, repack: bool = True, quick: bool = False) -> Collected:
        """Removes chunks that no snapshot uses; without `repack` only packs that none uses.

        If `quick`, the folders are compared with the index only the first time, and packs that more
        than a few snapshots need stay as they are: it takes as long as what was deleted since, and
        not as long as the store is large. For who deletes often, and saves by this release alone.
        Others may save meanwhile: they wait for some milliseconds now and then. SnapshotInvalid,
        and no more is removed, where a snapshot cannot be read, since what it uses is not known
        then, or a chunk is damaged.
        """
        return self._with_index(lambda: self._collect(repack, quick))

    def _collect(self, repack: bool, quick: bool) -> Collected:
        collection = Collection(self._snapshots, self._packs, self._index, self._locked)
        if not (quick and self._compared and self._index.known == ALL_SNAPSHOTS):
            self._sweep()
            collection.compare()
            self._compared = True
        return collection.run(repack=repack, quick=quick)

    def _with_index(self, use: Callable[[], _T]) -> _T:
        """Does what needs the index; once more with a new one if it is damaged."""
        for _ in range(_TRIES):
            try:
                return use()
            except IndexDamaged:
                with self._locked(fcntl.LOCK_EX):
                    self._index.discard()
            except IndexStale:  # another process removed a pack that it had found damaged
                self._index.recall()
        raise SnapshotError(f"{self.folder} changes faster than it can be used: try again")

    def _sweep_once(self) -> None:
        if not self._swept:
            self._sweep()

    def _sweep(self) -> None:
        """Removes what killed writers left."""
        sweep(self._snapshots)
        sweep(self._packs)
        self._swept = True

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        """Waits for the store."""
        path = self.folder / LOCK_FILE
        with explained(path):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with explained(path):
                fcntl.flock(fd, how)
            yield
        finally:
            os.close(fd)


def resolve(text: str | Path) -> Path:
    """The snapshot's file that is meant: a path, or STORE/NAME. Raises SnapshotNotFound for a store
    without a name."""
    with explained(Path(text), "open"):
        path = Path(text).expanduser()
    if os.path.isdir(path / SNAPSHOTS_FOLDER):
        found = Store(path, create=False).names()
        names = ", ".join(found[:_MAX_NAMES]) or "none yet"
        rest = f" and {len(found) - _MAX_NAMES} more" if len(found) > _MAX_NAMES else ""
        given = f"{path} is a store; give {path}/NAME"
        raise SnapshotNotFound(f"{given}, of which there are: {names}{rest}")
    inside = path.parent / SNAPSHOTS_FOLDER / f"{path.name}{SUFFIX}"
    return inside if not os.path.exists(path) and os.path.exists(inside) else path


def target_of(path: str | Path | Store) -> Path | Store:
    """Where to save: a store, which a folder is that exists, or a file."""
    if isinstance(path, Store):
        return path
    with explained(Path(path), "open"):
        path = Path(path).expanduser()
        return Store(path) if path.is_dir() else path


def _nbytes_of(path: Path) -> int:
    """The length of a file that is there; -1 for anything else."""
    try:
        found = os.lstat(path)
    except OSError:
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1
