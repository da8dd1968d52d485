"""A file mapped read-only: the weights of a model, shared by every actor and every process."""

from __future__ import annotations

import os
from pathlib import Path

from isthmus.file_hash import file_identity
from isthmus.memory.lease import LeasedFile, Range, mapping
from isthmus.native import libc
from isthmus.native.owned import Owned
from isthmus.units import OS_PAGE, HostAddr, align_up


class FileMapping(Owned):
    """Owns the mapping of one whole file. Pages are read when touched and shared with the cache.

    `nbytes` is the file's length; `mapped_nbytes` rounds it up to whole OS pages. Where the system
    gives a lease, the bytes stay what they were whatever happens to the file (`lease`). Elsewhere
    the file must not be cut short while it is mapped: the system answers an access with SIGBUS.
    """

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            found = os.fstat(fd)
            self.nbytes = found.st_size
            self.identity = file_identity(found)
            """Which file is mapped, as `file_hash` tells one from another."""
            self.mapped_nbytes = align_up(self.nbytes, OS_PAGE)
            with mapping:
                address = libc.map_file(fd, self.mapped_nbytes)
        except BaseException:
            os.close(fd)
            raise
        self.path = path
        self._file = file = LeasedFile(fd, str(path), [Range(address, self.mapped_nbytes, 0)])
        nbytes = self.mapped_nbytes

        def close(base: int) -> None:
            file.close()
            libc.unmap(base, nbytes)

        super().__init__(address, close)

    @property
    def base(self) -> HostAddr:
        """The address of the file's first byte."""
        return HostAddr(self.handle)

    @property
    def intact(self) -> bool:
        """Whether the bytes are those that the file had when it was mapped. Without a lease this
        asks for the file's status, which takes some microseconds."""
        return self._file.intact
