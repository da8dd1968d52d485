"""How much of the local disk agents take."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

from isthmus.snapshot import Store
from isthmus.snapshot.atomic import explained

_FOLDERS = ("agents", "turns")
"""Folders beside the store with files whose names begin with an agent's id."""


def nbytes_taken(store: Store, ids: Collection[str]) -> int:
    """Bytes that agents take: records, turns and snapshots. What they share counts once.

    Of agents in an object store, what is in the cache. SnapshotError if a folder cannot be read.
    """
    folders = (store.folder.parent / it for it in _FOLDERS)
    return store.nbytes_of({f"{it}." for it in ids}) + sum(_nbytes_in(it, ids) for it in folders)


def nbytes_for_agents(store: Store) -> int:
    """Bytes of the store's packs, and those that are free on its disk. SnapshotError."""
    with explained(store.folder, "look at"):
        found = os.statvfs(store.folder)
    return found.f_bavail * found.f_frsize + store.nbytes_of_packs()


def _nbytes_in(folder: Path, ids: Collection[str]) -> int:
    nbytes = 0
    with explained(folder, "read"), contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            if entry.name.partition(".")[0] in ids:
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    nbytes += entry.stat(follow_symlinks=False).st_size
    return nbytes
