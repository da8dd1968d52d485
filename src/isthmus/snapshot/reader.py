"""An opened snapshot: checked before anything of it is used.

Always checked: the header, byte for byte, the file's length, and the hash of every part. The
memory's chunks are checked by `verify`, which reads them all; without it they are read when they
are touched, which is for files that one trusts.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from isthmus.errors import SnapshotError, SnapshotInvalid
from isthmus.memory import Extent, Image, SharedFile
from isthmus.snapshot.atomic import explained
from isthmus.snapshot.chunk import CHUNK_NBYTES, Chunks, decode_chunks, runs
from isthmus.snapshot.header import (
    LENGTH,
    MAX_HEADER_NBYTES,
    Header,
    Tensor,
    decode_header,
)
from isthmus.snapshot.index import Index
from isthmus.snapshot.manifest import DIGESTS_PART, NUMBERS_PART, Manifest
from isthmus.snapshot.packs import Packs
from isthmus.snapshot.regular import open_regular, read_at
from isthmus.units import HostAddr, format_nbytes

_KNOWS_NO_HOLES = (errno.EINVAL, errno.ENOTSUP, errno.ENOTTY)
"""Answers of systems and file systems that cannot tell where a file has holes."""

PACKS_FOLDER = "packs"


class Snapshot:
    """See the module. Immutable; keeps its file open, so that it may be replaced meanwhile."""

    def __init__(
        self, path: Path, file: SharedFile, header: Header, index: Index | None = None
    ) -> None:
        self.path = path
        self.manifest: Manifest = header.manifest
        self.id = header.id
        self.signature = header.signature
        self.signed = header.signature is not None
        self.self_contained = header.has_memory
        self._file = file
        self._header = header
        self._tensors = {tensor.name: tensor for tensor in header.tensors}
        for part in self.manifest.parts:
            self.part(part.name)
        self.chunks: Chunks = decode_chunks(
            self.part(NUMBERS_PART), self.part(DIGESTS_PART), self.manifest.memory.nbytes
        )
        if len(self.chunks) != self.manifest.memory.n_chunks:
            raise SnapshotInvalid(f"{path}: the table of chunks has another length")
        folder = Path(os.path.abspath(path)).parent.parent / PACKS_FOLDER
        self._packs = None if header.has_memory else Packs(folder, self.id, self.chunks, index)

    def __repr__(self) -> str:
        return f"<Snapshot {self.id[:12]} of {self.manifest.guest.name}: {self.path}>"

    @property
    def file_nbytes(self) -> int:
        """The file's length; on the disk it takes less where it is sparse."""
        return self._header.file_nbytes

    @property
    def disk_nbytes(self) -> int:
        """Bytes that it takes on the disk. SnapshotError if that cannot be told now."""
        with explained(self.path, "read"):
            return os.fstat(self._file.fd).st_blocks * 512

    @property
    def tensors(self) -> list[Tensor]:
        """What is in the file, in order."""
        return list(self._header.tensors)

    def part(self, name: str) -> bytes:
        """A part's bytes; SnapshotInvalid where it is missing or damaged."""
        record = next((part for part in self.manifest.parts if part.name == name), None)
        if record is None:
            raise SnapshotInvalid(f"{self.path} has no part {name!r}")
        tensor = self._tensors[name]
        data = _read(self._file.fd, self._header.nbytes + tensor.offset, tensor.nbytes)
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise SnapshotInvalid(f"{self.path} is damaged: {name} has another SHA-256")
        return data

    def image(self) -> Image:
        """The linear memory, to be mapped. SnapshotInvalid where a store lacks a chunk of it."""
        nbytes = self.manifest.memory.nbytes
        used = list(runs(self.chunks))
        if self._packs is None:
            return Image(nbytes, [Extent(0, nbytes, self._file, self._header.nbytes)], used)
        return self._packs.image(nbytes, used)

    def lacks(self) -> bool:
        """Whether a store does not have all of its chunks."""
        return self._packs is not None and self._packs.lacks()

    def packs(self) -> list[Path]:
        """The packs of a store that hold its chunks. SnapshotInvalid where it lacks one."""
        return [] if self._packs is None else self._packs.holding()

    def chunk(self, digest: bytes) -> bytes:
        """A chunk of the store that this snapshot is in. SnapshotInvalid where it is missing or
        damaged."""
        assert self._packs is not None, "only a store's snapshots have their chunks elsewhere"
        return self._packs.read(digest)

    def verify_memory(self, base: HostAddr) -> None:
        """Compares the memory at `base`, where the image was placed, with the hashes."""
        for number, expected in self.chunks.items():
            data = (ctypes.c_ubyte * CHUNK_NBYTES).from_address(base + number * CHUNK_NBYTES)
            if hashlib.sha256(data).digest() != expected:
                self._refuse_chunk(number)
        self._verify_holes()

    def verify(self) -> None:
        """Reads everything and compares it with its hashes. Raises SnapshotInvalid."""
        for number, data in self.read_chunks():
            if hashlib.sha256(data).digest() != self.chunks[number]:
                self._refuse_chunk(number)
        self._verify_holes()

    def read_chunks(self) -> Iterator[tuple[int, bytes]]:
        """Each chunk that is not all zero, with its number."""
        for extent in self.image().extents:
            first, last = extent.offset, extent.offset + extent.nbytes
            for number in range(first // CHUNK_NBYTES, last // CHUNK_NBYTES):
                if number in self.chunks:
                    at = extent.file_offset + number * CHUNK_NBYTES - extent.offset
                    yield number, _read(extent.file.fd, at, CHUNK_NBYTES)

    def _refuse_chunk(self, number: int) -> None:
        begin = number * CHUNK_NBYTES
        end = begin + CHUNK_NBYTES
        where = [
            t.name for t in self._tensors.values() if t.offset < end and begin < t.offset + t.nbytes
        ]
        names = f" ({', '.join(where[:3])})" if self.self_contained else ""
        raise SnapshotInvalid(
            f"{self.path} is damaged: bytes {begin} to {end} of its memory{names} have another "
            "SHA-256"
        )

    def _verify_holes(self) -> None:
        """Chunks that are to be zero must be, wherever the file holds data at all."""
        if not self.self_contained:
            return
        begin, end = self._header.nbytes, self._header.nbytes + self.manifest.memory.nbytes
        zero = bytes(CHUNK_NBYTES)
        for start, stop in _data_ranges(self._file.fd, begin, end):
            for number in range((start - begin) // CHUNK_NBYTES, -((begin - stop) // CHUNK_NBYTES)):
                if number in self.chunks:
                    continue
                if _read(self._file.fd, begin + number * CHUNK_NBYTES, CHUNK_NBYTES) != zero:
                    self._refuse_chunk(number)


def open_snapshot(path: Path, key: bytes | None = None, index: Index | None = None) -> Snapshot:
    """Opens a snapshot and checks all but its memory.

    With a `key` it must be signed with it. `index` is that of the store it is in, if it is open.
    Raises SnapshotNotFound, SnapshotInvalid, SnapshotUnsupported, SnapshotUntrusted, and
    SnapshotError if it cannot be read now.
    """
    file = open_regular(path)
    try:
        with explained(path, "read"):
            raw = _read_header(file.fd)
            header = decode_header(raw, key)
            found = os.fstat(file.fd).st_size
            if found != header.file_nbytes:
                raise SnapshotInvalid(f"it is {found} bytes long instead of {header.file_nbytes}")
            return Snapshot(path, file, header, index)
    except SnapshotError as error:
        text = str(error)
        raise type(error)(text if str(path) in text else f"{path}: {text}") from None


def _read_header(fd: int) -> bytes:
    first = os.pread(fd, LENGTH.size, 0)
    nbytes = LENGTH.unpack(first)[0] if len(first) == LENGTH.size else 0
    if not 2 <= nbytes <= MAX_HEADER_NBYTES:
        raise SnapshotInvalid("it is not a safetensors file, or its header is damaged")
    if nbytes > os.fstat(fd).st_size:
        raise SnapshotInvalid(f"it is truncated inside its header of {format_nbytes(nbytes)}")
    return _read(fd, 0, LENGTH.size + nbytes)


def _read(fd: int, offset: int, nbytes: int) -> bytes:
    try:
        data = read_at(fd, nbytes, offset)
    except OSError as error:
        raise SnapshotError(f"it cannot be read: {error.strerror}") from None
    if len(data) < nbytes:
        raise SnapshotInvalid("it is truncated")
    return data


def _data_ranges(fd: int, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Where a file holds data between `begin` and `end`; all of it where that is not known."""
    at = begin
    while at < end:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole follows
                return
            if error.errno in _KNOWS_NO_HOLES:
                yield at, end
                return
            raise SnapshotError(f"cannot look for holes in the file: {error.strerror}") from None
        if start >= end:
            return
        stop = min(os.lseek(fd, start, os.SEEK_HOLE), end)
        yield start, stop
        at = stop
