"""A folder of snapshots that share their chunks: what two of them have alike is stored once.

::

    STORE/lock                               taken shared by writers, alone by `gc`
    STORE/snapshots/NAME.safetensors         a manifest, its parts, and no memory
    STORE/packs/SHA256.pack.safetensors      chunks

A snapshot writes one pack with the chunks that are new, and then its manifest. Both appear whole
or not at all, in this order, so a crash leaves at most a pack that nobody uses, for `gc`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from isthmus.errors import SettingsError, SnapshotError, SnapshotInvalid, SnapshotNotFound
from isthmus.snapshot.atomic import AtomicFile, explained, sweep, sync_folder
from isthmus.snapshot.chunk import CHUNK_NBYTES
from isthmus.snapshot.draft import Draft, Saved, save_recipe
from isthmus.snapshot.pack import Pack, Packs, unpack, write_pack
from isthmus.snapshot.reader import PACKS_FOLDER, Snapshot, open_snapshot

SNAPSHOTS_FOLDER = "snapshots"
SUFFIX = ".safetensors"
_LOCK = "lock"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_REPACK_BELOW = 0.5
"""A pack of which less than this share is used is written anew."""


@dataclass(frozen=True)
class Collected:
    """What `gc` did."""

    n_packs_removed: int
    n_packs_rewritten: int
    nbytes_freed: int


class Store:
    """See the module. Holds nothing open; safe to use from several processes."""

    def __init__(self, folder: str | Path, *, create: bool = True) -> None:
        """Opens a store; with `create`, a folder that is missing or empty becomes one."""
        self.folder = folder = Path(folder).expanduser()
        self._snapshots = folder / SNAPSHOTS_FOLDER
        self._packs = folder / PACKS_FOLDER
        if not create and not self._snapshots.is_dir():
            raise SnapshotNotFound(f"{folder} is not a store of snapshots")
        for part in (folder, self._snapshots, self._packs):
            if part.is_symlink():
                raise SnapshotError(f"{part} is a symbolic link; give the folder itself")
        if folder.is_dir() and not self._snapshots.is_dir() and any(folder.iterdir()):
            raise SnapshotError(
                f"{folder} is neither empty nor a store; give a new folder, or the name of a file"
            )
        for part in (folder, self._snapshots, self._packs):
            with explained(part):
                part.mkdir(mode=0o700, parents=True, exist_ok=True)

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
        """The names of all snapshots."""
        return sorted(path.name.removesuffix(SUFFIX) for path in self._files())

    def save(self, draft: Draft, name: str | None = None, key: bytes | None = None) -> Saved:
        """Writes the chunks that are new, then the snapshot, replacing one of the same name.

        By default its name is the first 16 digits of its id.
        """
        path = self.path(draft.id[:16] if name is None else name)
        with self._locked(fcntl.LOCK_SH):
            packs = Packs(self._packs)
            new: dict[bytes, int] = {}
            for number, digest in draft.memory.chunks.items():
                if digest not in packs:
                    new.setdefault(digest, number)
            view = draft.memory.view
            pack = write_pack(
                self._packs,
                ((digest, view(n * CHUNK_NBYTES, CHUNK_NBYTES)) for digest, n in new.items()),
            )
            saved = save_recipe(draft, path, key)
        pack_nbytes = pack.stat().st_size if pack else 0
        return replace(
            saved,
            nbytes_written=saved.nbytes_written + pack_nbytes,
            n_chunks_written=len(new),
        )

    def add(self, name: str, data: bytes, id_: str) -> None:
        """Takes a snapshot's file out of another store. SnapshotInvalid unless it has that id.

        Its packs are missing here until `add_pack`.
        """
        with self._locked(fcntl.LOCK_SH), AtomicFile(self.path(name)) as file:
            file.write(data, 0)
            try:
                found = open_snapshot(file.temporary).id
            except SnapshotError as error:
                raise SnapshotInvalid(str(error).replace(str(file.temporary), name)) from None
            if found != id_:
                raise SnapshotInvalid(f"{name} is snapshot {found[:12]}… and not {id_[:12]}…")
            file.commit(len(data))

    def has_pack(self, name: str) -> bool:
        """Whether a pack of that file name is here."""
        return (self._packs / name).exists()

    def add_pack(self, name: str, data: bytes) -> None:
        """Takes a pack out of another store. SnapshotInvalid where a byte of it is another."""
        with self._locked(fcntl.LOCK_SH):
            write_pack(self._packs, unpack(self._packs / name, data))

    def open(self, name: str, key: bytes | None = None) -> Snapshot:
        """Opens the snapshot of that name."""
        with self._locked(fcntl.LOCK_SH):
            return open_snapshot(self.path(name), key)

    def id_of(self, base: Saved | str, key: bytes | None = None) -> str:
        """The id of a snapshot here, by name or as it was saved; SnapshotNotFound for none such."""
        name = base if isinstance(base, str) else self.name_of(base.path)
        found = self.open(name, key).id
        if isinstance(base, Saved) and base.id != found:
            raise SnapshotNotFound(f"the snapshot {name!r} was replaced since it was saved")
        return found

    def delete(self, name: str) -> None:
        """Removes a snapshot; its chunks go with the next `gc`."""
        path = self.path(name)
        if not path.exists():
            raise SnapshotNotFound(f"there is no snapshot {name!r} in {self.folder}")
        with explained(path):
            path.unlink()
            sync_folder(self._snapshots)

    def gc(self, *, repack: bool = True) -> Collected:
        """Removes chunks that no snapshot uses; without `repack` only in packs that none uses.

        SnapshotInvalid, and no more is removed, where a snapshot cannot be read, since what it
        uses is not known then, or a chunk is damaged.
        """
        with self._locked(fcntl.LOCK_EX):
            used = {digest for path in self._files() for digest in _chunks_of(path)}
            removed = rewritten = freed = 0
            for pack in Packs(self._packs).packs:
                live = [i for i, digest in enumerate(pack.digests) if digest in used]
                if len(live) >= (_REPACK_BELOW * len(pack.digests) if repack else 1):
                    continue
                freed += pack.path.stat().st_size
                if live:
                    freed -= self._rewrite(pack, live)
                    rewritten += 1
                else:
                    removed += 1
                with explained(pack.path):
                    pack.path.unlink()
            sync_folder(self._packs)
        return Collected(removed, rewritten, freed)

    def _rewrite(self, pack: Pack, live: list[int]) -> int:
        digests = (pack.digests[i] for i in live)
        path = write_pack(self._packs, zip(digests, pack.verified(live), strict=True))
        assert path is not None
        return path.stat().st_size

    def _files(self) -> list[Path]:
        return [
            path for path in self._snapshots.glob(f"*{SUFFIX}") if not path.name.startswith(".")
        ]

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        """Waits for the store; then sweeps what killed writers left."""
        path = self.folder / _LOCK
        with explained(path):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, how)
            sweep(self._snapshots)
            sweep(self._packs)
            yield
        finally:
            os.close(fd)


def resolve(text: str | Path) -> Path:
    """The snapshot's file that is meant: a path, or STORE/NAME."""
    path = Path(text).expanduser()
    if os.path.isdir(path / SNAPSHOTS_FOLDER):
        names = ", ".join(Store(path, create=False).names()) or "none yet"
        raise SnapshotNotFound(f"{path} is a store; give {path}/NAME, of which there are: {names}")
    inside = path.parent / SNAPSHOTS_FOLDER / f"{path.name}{SUFFIX}"
    return inside if not os.path.exists(path) and os.path.exists(inside) else path


def target_of(path: str | Path | Store) -> Path | Store:
    """Where to save: a store, which a folder is that exists, or a file."""
    if isinstance(path, Store):
        return path
    path = Path(path).expanduser()
    return Store(path) if path.is_dir() else path


def _chunks_of(path: Path) -> set[bytes]:
    return set(open_snapshot(path).chunks.values())
