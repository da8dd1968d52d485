"""A file mapped read-only: the weights of a model, shared by every actor and every process."""

from __future__ import annotations

import os
from pathlib import Path

from isthmus.native import libc
from isthmus.native.owned import Owned
from isthmus.units import OS_PAGE, HostAddr, align_up


class FileMapping(Owned):
    """Owns the mapping of one whole file. Pages are read when touched and shared with the cache.

    `nbytes` is the file's length; `mapped_nbytes` rounds it up to whole OS pages. The file must
    not be truncated while it is mapped: the system answers such an access with SIGBUS.
    """

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            self.nbytes = os.fstat(fd).st_size
            mapped = self.mapped_nbytes = align_up(self.nbytes, OS_PAGE)
            address = libc.map_file(fd, mapped)
        finally:
            os.close(fd)
        self.path = path
        super().__init__(address, lambda base: libc.unmap(base, mapped))

    @property
    def base(self) -> HostAddr:
        """The address of the file's first byte."""
        return HostAddr(self.handle)
