"""Evicted actors, and where they are kept: a folder of this process's own, gone with it.

An evicted actor is no snapshot. Its memory is a file of plain bytes, which nothing hashes, signs or
syncs, since nobody else reads it and no other process goes on from it; all else stays in memory.
Whoever wants room waits for that file: see docs/rationale.md.

It is removed when the runtime closes or the process ends. What a killed process left behind is
removed by the next one that needs a folder beside it: whoever lives holds a lock on theirs.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from isthmus.actor.beginning import Frozen
from isthmus.actor.state import ActorState
from isthmus.errors import SnapshotError, SnapshotInvalid
from isthmus.memory import Extent, Image
from isthmus.snapshot import Chunks
from isthmus.snapshot.regular import open_regular
from isthmus.units import GIB, format_nbytes

_KEPT_NBYTES, _KEPT_SHARE = GIB, 20
"""Left free on a disk: so many bytes, or one part in so many of a small disk."""
_PREFIX = "actors-"
_LOCK = "lock"


@dataclass(frozen=True)
class Evicted:
    """An actor between two messages whose memory is in a file."""

    path: Path
    nbytes: int
    """Of its linear memory, and so of the file."""
    used: Sequence[tuple[int, int]]
    """Ranges, (offset, nbytes), outside of which the memory is zero."""
    chunks: Chunks | None
    """The hashes of the memory's chunks, if they are known."""
    state: ActorState
    snapshot_id: str | None

    def frozen(self) -> Frozen:
        """How its body begins anew; maps the file. Raises SnapshotError, and SnapshotInvalid if the
        file is not as long as it was written."""
        file = open_regular(self.path)
        if os.fstat(file.fd).st_size != self.nbytes:
            raise SnapshotInvalid(f"{self.path} is not as long as it was written")
        image = Image(self.nbytes, [Extent(0, self.nbytes, file, 0)], self.used)
        return Frozen(self.state, image, self.chunks, self.snapshot_id)

    def remove(self) -> None:
        """Removes the file; who maps it keeps the bytes."""
        self.path.unlink(missing_ok=True)


class EvictionFolder:
    """Owns a folder under `parent`, made when it is first needed, readable by this user only."""

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        self._folder: Path | None = None
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._remove: Callable[[], object] = lambda: None

    def new_path(self) -> Path:
        """A file that is not there yet. SnapshotError where the folder cannot be made, or its disk
        is so full that others would feel it."""
        with self._lock:
            if self._folder is None:
                try:
                    self._folder = self._make()
                except OSError as error:
                    raise SnapshotError(
                        f"actors cannot be evicted to {self._parent}: {error.strerror}"
                    ) from None
            self._require_disk(self._folder)
            return self._folder / f"{next(self._numbers)}.memory"

    def _require_disk(self, folder: Path) -> None:
        disk = shutil.disk_usage(folder)
        kept = min(_KEPT_NBYTES, disk.total // _KEPT_SHARE)
        if disk.free < kept:
            raise SnapshotError(
                f"actors cannot be evicted to {folder}: its disk has {format_nbytes(disk.free)} "
                f"left, and {format_nbytes(kept)} are kept free; make room, or give another folder "
                "(Capacity.folder)"
            )

    def close(self) -> None:
        """Removes it and everything in it; a second call does nothing."""
        self._remove()

    def _make(self) -> Path:
        self._parent.mkdir(parents=True, exist_ok=True)
        _sweep(self._parent)
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self._parent))
        lock = _try_lock(folder)
        self._remove = weakref.finalize(self, _remove, folder, lock, os.getpid())
        return folder


def _remove(folder: Path, lock: int | None, pid: int) -> None:
    if os.getpid() != pid:
        return  # a forked child: it is its parent's
    shutil.rmtree(folder, ignore_errors=True)
    if lock is not None:
        os.close(lock)


def _sweep(parent: Path) -> None:
    """Removes the folders of processes that are gone."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if not (folder / _LOCK).exists():
                continue  # being made just now
            lock = _try_lock(folder)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _try_lock(folder: Path) -> int | None:
    """A lock on it that ends with this process; None where another one has it."""
    fd = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd
