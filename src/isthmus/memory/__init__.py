"""Address ranges that guest, host and device see alike."""

from isthmus.memory.file import FileMapping
from isthmus.memory.region import Hold, Region

__all__ = ["FileMapping", "Hold", "Region"]
