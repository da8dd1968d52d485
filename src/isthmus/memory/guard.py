"""Files that a library maps by itself, such as libllama: guarded as our own mappings are.

::

    guard = FileGuard(file.files)
    with guard.mapping():
        handle = library.llama_model_load_from_file(…)      # maps the files
    …
    guard.changed                                           # before each pass: None
    guard.close()                                           # first: then the library may unmap
    library.llama_model_free(handle)

The leases are taken before the library opens the files. What the kernel lists as new mappings of
them afterwards is the library's (proc_pid_maps(5)). If somebody waits to write to such a file,
copies take the place of these mappings: see `lease`. The library's own `munmap` frees the copies.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from isthmus.file_hash import file_identity
from isthmus.memory import lease
from isthmus.memory.lease import LeasedFile, Range
from isthmus.native import libc
from isthmus.units import OS_PAGE

_MAPS = Path("/proc/self/maps")
_SHARED = "r--s"
"""What a mapping may be that a copy can replace: read-only and shared."""


class FileGuard:
    """Owns the leases on some files; see the module. Safe to close twice. Raises OSError."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files: list[_MappedFile] = []
        try:
            for path in paths:
                self._files.append(_MappedFile(path))
        except BaseException:
            self.close()
            raise

    @property
    def identities(self) -> tuple[str, ...]:
        """Which files are guarded, as `file_hash` tells one from another."""
        return tuple(it.identity for it in self._files)

    @contextmanager
    def mapping(self) -> Iterator[None]:
        """A block in which the library maps the files, and by whose end it is known where. One at a
        time in a process."""
        with lease.mapping:
            before = [it.listed() for it in self._files]
            try:
                yield
            finally:
                for file, known in zip(self._files, before, strict=True):
                    file.cover([it for it in file.listed() if it not in known])

    @property
    def changed(self) -> Path | None:
        """The first file whose bytes are not those that it had; None if all are intact."""
        return next((it.path for it in self._files if not it.intact), None)

    @property
    def ranges(self) -> list[Range]:
        """The mappings that are guarded."""
        return [found for it in self._files for found in it.covered]

    def close(self) -> None:
        """Gives the leases back. The mappings stay the library's, copies among them."""
        for it in self._files:
            it.close()


class _MappedFile(LeasedFile):
    """One file. What the library unmaps in the meantime is not touched any more."""

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            self.path, self.identity = path, file_identity(os.fstat(fd))
            self._name = _listed_name(fd)
        except BaseException:
            os.close(fd)
            raise
        self.covered: Sequence[Range] = ()
        self._is_known = False
        super().__init__(fd, str(path))

    def listed(self) -> list[Range]:
        """All mappings of the file in this process that a copy can replace."""
        return [found for name, found in _shared_mappings() if name == self._name]

    def cover(self, ranges: Sequence[Range]) -> None:
        """Guards these mappings from now on."""
        with self._lock:
            self.covered, self._is_known = ranges, True

    def _mapped(self) -> Sequence[Range] | None:
        if not self._is_known:
            return None
        now = self.listed()
        return [it for it in self.covered if it in now]


def _listed_name(fd: int) -> str:
    """Device and inode of a file as the kernel lists them, which on layered file systems are not
    those of its status; "" if there is no such list."""
    address = libc.map_file(fd, OS_PAGE)
    try:
        found = ((name, address - it.base, it.nbytes) for name, it in _shared_mappings())
        return next((name for name, at, nbytes in found if 0 <= at < nbytes), "")
    finally:
        libc.unmap(address, OS_PAGE)


def _shared_mappings() -> Iterator[tuple[str, Range]]:
    """Device and inode of each read-only shared mapping of this process, and its range."""
    try:
        lines = _MAPS.read_bytes().splitlines()
    except OSError:  # not Linux: there are no leases either
        return
    for line in lines:
        addresses, access, offset, device, inode = line.decode(errors="replace").split(None, 5)[:5]
        if access == _SHARED and inode != "0":
            begin, end = (int(it, 16) for it in addresses.split("-"))
            yield f"{device} {inode}", Range(begin, end - begin, int(offset, 16))
