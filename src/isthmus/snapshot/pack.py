"""Packs: files of chunks, found by the hash of their contents.

1. u64 and header, as in any safetensors file; `__metadata__`: `format` = `isthmus-pack`
2. `chunks`, u8 [n, 16384], at a multiple of 16,384 bytes, so that runs of them can be mapped
3. `sha256`, u8 [n, 32]: the hash of each

A pack's name is the SHA-256 of its digests, so what two writers write alike is one file.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from isthmus.errors import SnapshotInvalid
from isthmus.snapshot.atomic import AtomicFile, explained
from isthmus.snapshot.chunk import CHUNK_NBYTES, DIGEST_NBYTES
from isthmus.snapshot.header import LENGTH, Tensor, encode_safetensors
from isthmus.snapshot.regular import open_regular, read_at

_MAX_CHUNKS = 1 << 22
"""Chunks of one pack, 64 GiB. A sparse file of a stranger is longer than that at no cost."""
PACK_SUFFIX = ".pack.safetensors"
_FORMAT = {"format": "isthmus-pack"}


@dataclass(frozen=True)
class Pack:
    """A pack: `digests` in the order of its chunks, the first at `data_offset`. Not kept open."""

    path: Path
    data_offset: int
    digests: Sequence[bytes]

    @property
    def nbytes(self) -> int:
        """The file's length."""
        return self.data_offset + len(self.digests) * (CHUNK_NBYTES + DIGEST_NBYTES)

    def read(self, indices: Iterable[int]) -> Iterator[bytes]:
        """The bytes of those chunks. SnapshotNotFound if the pack was removed meanwhile."""
        file = open_regular(self.path)
        for index in indices:
            at = self.data_offset + index * CHUNK_NBYTES
            with explained(self.path, "read"):
                yield os.pread(file.fd, CHUNK_NBYTES, at)

    def verified(self, indices: Sequence[int]) -> Iterator[bytes]:
        """As `read`; SnapshotInvalid where a chunk has another hash."""
        for index, data in zip(indices, self.read(indices), strict=True):
            if hashlib.sha256(data).digest() != self.digests[index]:
                raise SnapshotInvalid(f"{self.path} is damaged: chunk {index} has another SHA-256")
            yield data


def write_pack(folder: Path, chunks: Iterable[tuple[bytes, bytes | memoryview]]) -> Pack | None:
    """Writes chunks, as (digest, bytes), into a new pack; None where there are none.

    What killed writers left in the folder is not looked for: it has too many files.
    """
    contents = list(chunks)
    if not contents:
        return None
    each = [digest for digest, _ in contents]
    digests = b"".join(each)
    n, data_nbytes = len(contents), len(contents) * CHUNK_NBYTES
    head = _header(n)
    path = folder / f"{hashlib.sha256(digests).hexdigest()}{PACK_SUFFIX}"
    with AtomicFile(path, swept=True) as file:
        file.write(head, 0)
        for index, (_, data) in enumerate(contents):
            file.write(data, len(head) + index * CHUNK_NBYTES)
        file.write(digests, len(head) + data_nbytes)
        file.commit(len(head) + data_nbytes + len(digests))
    return Pack(path, len(head), each)


def _header(n: int) -> bytes:
    data_nbytes = n * CHUNK_NBYTES
    return encode_safetensors(
        _FORMAT,
        [
            Tensor("chunks", "U8", [n, CHUNK_NBYTES], 0, data_nbytes),
            Tensor("sha256", "U8", [n, DIGEST_NBYTES], data_nbytes, n * DIGEST_NBYTES),
        ],
    )


def open_pack(path: Path) -> Pack:
    """Reads what is in a pack; SnapshotInvalid unless it is exactly what its name says.

    SnapshotNotFound if there is none, SnapshotError if it cannot be read now.
    """
    file = open_regular(path)
    with explained(path, "read"):
        nbytes = os.fstat(file.fd).st_size
        offset, digests = _index(path, nbytes, lambda n, at: read_at(file.fd, n, at))
    return Pack(path, offset, digests)


def unpack(path: Path, data: bytes | mmap.mmap) -> Iterator[tuple[bytes, memoryview]]:
    """The chunks of a pack that is to be at `path`, as `write_pack` takes them. SnapshotInvalid
    unless it is exactly what its name says, each chunk included."""
    view = memoryview(data)
    offset, digests = _index(path, len(data), lambda n, at: data[at : at + n])
    for index, digest in enumerate(digests):
        chunk = view[offset + index * CHUNK_NBYTES :][:CHUNK_NBYTES]
        if hashlib.sha256(chunk).digest() != digest:
            raise SnapshotInvalid(f"{path} is damaged: chunk {index} has another SHA-256")
        yield digest, chunk


def _index(
    path: Path, nbytes: int, read: Callable[[int, int], bytes]
) -> tuple[int, Sequence[bytes]]:
    """Where a pack's chunks begin, and their digests. `read` gives n bytes at an offset."""
    first = read(LENGTH.size, 0)
    header_nbytes = LENGTH.size + (LENGTH.unpack(first)[0] if len(first) == LENGTH.size else 0)
    n, left = divmod(nbytes - header_nbytes, CHUNK_NBYTES + DIGEST_NBYTES)
    digests = b""
    if 0 < n <= _MAX_CHUNKS and left == 0:
        head = _header(n)
        if header_nbytes == len(head) and read(len(head), 0) == head:
            digests = read(n * DIGEST_NBYTES, header_nbytes + n * CHUNK_NBYTES)
    if not digests or path.name != f"{hashlib.sha256(digests).hexdigest()}{PACK_SUFFIX}":
        raise SnapshotInvalid(f"{path} is not a pack, or is truncated or damaged")
    return header_nbytes, [
        digests[i : i + DIGEST_NBYTES] for i in range(0, len(digests), DIGEST_NBYTES)
    ]
