"""Frozen bytes of a linear memory, in files, to be mapped copy-on-write by any number of Regions.

::

    Region of the parent   Region of a child    Region of a restored actor
          │ copy-on-write        │                     │
          └──────────┬───────────┘                     │
               Image (nameless memory)            Image (a snapshot's file)

Pages that nobody writes to exist once. The bytes of an image never change after it was made.
Where the system has no nameless memory (macOS), a temporary file without a name is used.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from isthmus.errors import Overloaded, RegionError
from isthmus.memory.quota import FILES
from isthmus.native import libc
from isthmus.native.owned import Owned
from isthmus.units import MIB, OS_PAGE, HostAddr

Buffer: TypeAlias = "bytes | memoryview"

MAX_EXTENTS = 1024
"""Pieces of an image; one of more is brought together. A process has some 65,000 mappings, of which
each memory over the image takes two for a piece."""
_COPY_NBYTES = 8 * MIB


class SharedFile(Owned):
    """Owns one file descriptor that several images read from."""

    def __init__(self, fd: int) -> None:
        """Overloaded, and the file is closed, if images have as many files as they may."""
        try:
            FILES.take(1)
        except Overloaded:
            os.close(fd)
            raise
        super().__init__(fd + 1, _close)
        self.is_written = False
        """Whether somebody could cut it short now: it is copied, and not mapped."""

    @property
    def fd(self) -> int:
        """The descriptor."""
        return self.handle - 1


def _close(handle: int) -> None:
    FILES.give(1)
    os.close(handle - 1)


@dataclass(frozen=True)
class Extent:
    """`nbytes` at `offset` of the image lie at `file_offset` of `file`."""

    offset: int
    nbytes: int
    file: SharedFile
    file_offset: int

    def part(self, begin: int, end: int) -> Extent:
        """What of it lies between two offsets of the image, which are inside."""
        at = self.file_offset + begin - self.offset
        return Extent(begin, end - begin, self.file, at)

    @contextmanager
    def mapped(self) -> Iterator[HostAddr]:
        """Its bytes in this process's memory while open, to be read. Raises RegionError if the file
        is shorter than it was."""
        end = self.file_offset + self.nbytes
        if os.fstat(self.file.fd).st_size < end:
            raise RegionError("the file of an image is shorter than it was")
        base = libc.map_file(self.file.fd, end)
        try:
            yield HostAddr(base + self.file_offset)
        finally:
            libc.unmap(base, end)


class Image:
    """See the module. Immutable; kept alive by whoever maps it.

    What no extent covers is zero, and so is all that lies outside the ranges `used`, (offset,
    nbytes): whoever looks for its contents need not read the rest, which would make it resident.
    """

    def __init__(
        self, nbytes: int, extents: Iterable[Extent], used: Sequence[tuple[int, int]]
    ) -> None:
        self.nbytes = nbytes
        self.extents: Sequence[Extent] = _joined(extents)
        self.used = used
        if len(self.extents) > MAX_EXTENTS:
            self.bring_together()

    @staticmethod
    def freeze(base: HostAddr, nbytes: int, used: Sequence[tuple[int, int]]) -> Image:
        """Copies the ranges `used`, (offset, nbytes), of the memory at `base` into an image."""
        return Image.gather(nbytes, _ranges(base, used), used)

    @staticmethod
    def gather(
        nbytes: int, pieces: Iterable[tuple[int, Buffer]], used: Sequence[tuple[int, int]]
    ) -> Image:
        """An image of pieces, (offset, bytes), which are copied."""
        file = _nameless_file(nbytes)
        for offset, data in pieces:
            _write_all(file.fd, memoryview(data), offset)
        return Image(nbytes, [Extent(0, nbytes, file, 0)], used)

    @staticmethod
    def write(path: Path, base: HostAddr, nbytes: int, used: Sequence[tuple[int, int]]) -> None:
        """Copies the ranges `used`, (offset, nbytes), of the memory at `base` into a new file.

        It is readable by this user alone. RegionError, and no file is left.
        """
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise RegionError(f"cannot write {path}: {error.strerror}") from None
        try:
            for offset, data in _ranges(base, used):
                _write_all(fd, data, offset)
            os.truncate(fd, nbytes)
        except BaseException as error:
            path.unlink()
            if isinstance(error, OSError):
                raise RegionError(f"cannot write {path}: {error.strerror}") from None
            raise
        finally:
            os.close(fd)

    def bring_together(self) -> None:
        """Copies what is in several pieces into one, which is one mapping. Changes no byte.

        RegionError, Overloaded; the image is what it was then.
        """
        self.extents = Image.gather(self.nbytes, _pieces(self.extents), self.used).extents

    def place(
        self, base: HostAddr, *, map_files: bool, apart: Sequence[tuple[int, int]] = ()
    ) -> int:
        """Puts the image at `base`, over zeroes; returns how many bytes had to be copied.

        Ranges `apart`, (offset, nbytes), are left zero. Raises RegionError if a file is shorter
        than it was.
        """
        n_copied = 0
        ends: dict[SharedFile, int] = {}
        # the extents as they are now: they may be brought together meanwhile
        for extent in _without(self.extents, apart):
            address = base + extent.offset
            may_map = map_files and not extent.file.is_written
            if may_map and extent.file_offset % OS_PAGE == 0 and address % OS_PAGE == 0:
                if extent.file not in ends:  # nobody can shorten it from now on, where it is leased
                    ends[extent.file] = os.fstat(extent.file.fd).st_size
                if extent.file_offset + extent.nbytes > ends[extent.file]:
                    raise RegionError("the file of an image is shorter than it was")
                libc.map_copy_on_write(address, extent.nbytes, extent.file.fd, extent.file_offset)
            else:
                target = (ctypes.c_ubyte * extent.nbytes).from_address(address)
                _read_all(extent, memoryview(target).cast("B"))
                n_copied += extent.nbytes
        return n_copied

    def read(self, offset: int, target: memoryview) -> None:
        """Fills `target`, u8 [n], with the bytes from `offset` on. RegionError."""
        end, at = offset + len(target), offset
        for extent in self.extents:
            begin, stop = max(at, extent.offset), min(end, extent.offset + extent.nbytes)
            if begin < stop:
                _blank(target[at - offset : begin - offset])
                _read_all(extent.part(begin, stop), target[begin - offset : stop - offset])
                at = stop
        _blank(target[at - offset :])


@dataclass(frozen=True)
class LiveImage:
    """The bytes of a Region that is still there and lies still, for copies that are made at once.

    For memory that cannot be mapped a second time: a device's own, or pages that it has pinned.
    """

    nbytes: int
    copy_to: Callable[[HostAddr], None]
    """Copies all of it to an address, however the device does that best."""

    def place(
        self, base: HostAddr, *, map_files: bool, apart: Sequence[tuple[int, int]] = ()
    ) -> int:
        """Copies it to `base`; returns how many bytes that were. `copy_to` knows what is apart."""
        self.copy_to(base)
        return self.nbytes


def _ranges(base: HostAddr, used: Iterable[tuple[int, int]]) -> Iterator[tuple[int, memoryview]]:
    """(offset, bytes) of the ranges `used`, (offset, nbytes), of the memory at `base`."""
    for offset, nbytes in used:
        yield offset, memoryview((ctypes.c_ubyte * nbytes).from_address(base + offset)).cast("B")


def _joined(extents: Iterable[Extent]) -> list[Extent]:
    """The same with neighbours made one."""
    joined: list[Extent] = []
    for extent in extents:
        last = joined[-1] if joined else None
        if last is not None and _follows(last, extent):
            joined[-1] = Extent(
                last.offset, last.nbytes + extent.nbytes, last.file, last.file_offset
            )
        elif extent.nbytes:
            joined.append(extent)
    return joined


def _without(extents: Iterable[Extent], apart: Sequence[tuple[int, int]]) -> Iterator[Extent]:
    """What is left of extents outside of the ranges `apart`, (offset, nbytes)."""
    for extent in extents:
        at, end = extent.offset, extent.offset + extent.nbytes
        for begin, nbytes in sorted(apart):
            if at < begin < end:
                yield extent.part(at, begin)
            if begin < end:
                at = max(at, begin + nbytes)
        if at < end:
            yield extent.part(at, end)


def _blank(target: memoryview) -> None:
    if target:
        ctypes.memset(ctypes.addressof(ctypes.c_ubyte.from_buffer(target)), 0, len(target))


def _pieces(extents: Iterable[Extent]) -> Iterator[tuple[int, memoryview]]:
    for extent in extents:
        part = memoryview(bytearray(extent.nbytes))
        _read_all(extent, part)
        yield extent.offset, part


def _follows(first: Extent, second: Extent) -> bool:
    return (
        first.file is second.file
        and first.offset + first.nbytes == second.offset
        and first.file_offset + first.nbytes == second.file_offset
    )


def _nameless_file(nbytes: int) -> SharedFile:
    """A file of zeroes without a name, gone with its last user."""
    try:
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("isthmus image", os.MFD_CLOEXEC)
        else:
            with tempfile.TemporaryFile(prefix="isthmus-") as temporary:
                fd = os.dup(temporary.fileno())
        file = SharedFile(fd)  # closes it also if the next line fails
        os.ftruncate(fd, nbytes)
    except OSError as error:
        raise RegionError(f"cannot freeze {nbytes} bytes of memory: {error.strerror}") from None
    return file


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        try:
            n = os.pwrite(fd, data[:_COPY_NBYTES], offset)
        except OSError as error:
            raise RegionError(f"cannot freeze memory: {error.strerror}") from None
        data, offset = data[n:], offset + n


def _read_all(extent: Extent, target: memoryview) -> None:
    offset = extent.file_offset
    while target:
        try:
            n = os.preadv(extent.file.fd, [target[:_COPY_NBYTES]], offset)
        except OSError as error:
            raise RegionError(f"cannot read the file of an image: {error.strerror}") from None
        if n == 0:
            raise RegionError("the file of an image is shorter than it was")
        target, offset = target[n:], offset + n
