"""Snapshots as files: format, integrity, stores. Knows no model, no device and no WebAssembly."""

from isthmus.snapshot.chunk import CHUNK_NBYTES, Chunks, MemorySource
from isthmus.snapshot.draft import Draft, Saved, save_file
from isthmus.snapshot.export import Export
from isthmus.snapshot.manifest import Manifest
from isthmus.snapshot.reader import Snapshot, open_snapshot
from isthmus.snapshot.store import Store

__all__ = [
    "CHUNK_NBYTES",
    "Chunks",
    "Draft",
    "Export",
    "Manifest",
    "MemorySource",
    "Saved",
    "Snapshot",
    "Store",
    "open_snapshot",
    "save_file",
]
