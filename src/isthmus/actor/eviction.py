"""Where evicted actors are kept: a folder of this process's own, gone with it.

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
from collections.abc import Callable
from pathlib import Path

from isthmus.errors import SnapshotError
from isthmus.units import GIB, format_nbytes

_KEPT_NBYTES, _KEPT_SHARE = GIB, 20
"""Left free on a disk: so many bytes, or one part in so many of a small disk."""
_PREFIX = "actors-"
_LOCK = "lock"


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
            return self._folder / f"{next(self._numbers)}.safetensors"

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
