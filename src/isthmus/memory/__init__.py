"""Address ranges that guest, host and device see alike, and their frozen images."""

from isthmus.memory.file import FileMapping
from isthmus.memory.guard import FileGuard
from isthmus.memory.image import Extent, Image, LiveImage, SharedFile
from isthmus.memory.pagemap import touched_chunks, used_chunks
from isthmus.memory.region import Hold, Region
from isthmus.memory.rescue import NamedFile

__all__ = [
    "Extent",
    "FileGuard",
    "FileMapping",
    "Hold",
    "Image",
    "LiveImage",
    "NamedFile",
    "Region",
    "SharedFile",
    "touched_chunks",
    "used_chunks",
]
