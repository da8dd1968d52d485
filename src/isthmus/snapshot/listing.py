"""The names in a store's folders. Names that nobody gives there are passed over."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

from isthmus.snapshot.pack import PACK_SUFFIX

SUFFIX = ".safetensors"
LOCK_FILE = "lock"
PACK_NAME = re.compile(rf"[0-9a-f]{{64}}{re.escape(PACK_SUFFIX)}")


def pack_names(folder: Path) -> set[str]:
    """The packs in a folder. OSError."""
    return set(filter(PACK_NAME.fullmatch, os.listdir(folder)))


def stamps(folder: Path) -> dict[bytes, str]:
    """All snapshots of a folder, and what tells whether each was replaced. OSError."""
    found = {}
    with os.scandir(os.fsencode(folder)) as entries:
        for entry in entries:
            if entry.name.endswith(os.fsencode(SUFFIX)) and not entry.name.startswith(b"."):
                found[entry.name] = _stamp(entry.stat(follow_symlinks=False))
    return found


def stamp_of(path: Path | bytes) -> str:
    """What tells whether a file was replaced; empty if there is none. OSError."""
    try:
        return _stamp(os.lstat(path))
    except FileNotFoundError:
        return ""


def _stamp(found: os.stat_result) -> str:
    return f"{found.st_ino}-{found.st_size}-{found.st_mtime_ns}"


@contextlib.contextmanager
def nothing_removed(store: Path) -> Iterator[None]:
    """While open, nobody removes packs of the store, unless its lock cannot be had at all."""
    fd = None
    with contextlib.suppress(OSError):
        fd = os.open(store / LOCK_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_SH)
    try:
        yield
    finally:
        if fd is not None:
            os.close(fd)
