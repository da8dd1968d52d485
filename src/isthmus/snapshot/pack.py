"""Packs: files of chunks, found by the hash of their contents.

1. u64 and header, as in any safetensors file; `__metadata__`: `format` = `isthmus-pack`
2. `chunks`, u8 [n, 16384], at a multiple of 16,384 bytes, so that runs of them can be mapped
3. `sha256`, u8 [n, 32]: the hash of each

A pack's name is the SHA-256 of its digests, so what two writers write alike is one file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from isthmus.errors import SnapshotInvalid, SnapshotNotFound
from isthmus.memory import Extent, Image
from isthmus.snapshot.atomic import AtomicFile
from isthmus.snapshot.chunk import CHUNK_NBYTES, DIGEST_NBYTES, Chunks
from isthmus.snapshot.header import LENGTH, MAX_HEADER_NBYTES, Tensor, encode_safetensors
from isthmus.snapshot.regular import open_regular

_MOST_OPEN = 64
"""Packs that one image keeps open: a process has some 1,000 descriptors."""
PACK_SUFFIX = ".pack.safetensors"
_FORMAT = {"format": "isthmus-pack"}


@dataclass(frozen=True)
class Pack:
    """A pack: `digests` in the order of its chunks, the first at `data_offset`. Not kept open."""

    path: Path
    data_offset: int
    digests: Sequence[bytes]

    def read(self, indices: Iterable[int]) -> Iterator[bytes]:
        """The bytes of those chunks."""
        file = open_regular(self.path)
        for index in indices:
            yield os.pread(file.fd, CHUNK_NBYTES, self.data_offset + index * CHUNK_NBYTES)

    def verified(self, indices: Sequence[int]) -> Iterator[bytes]:
        """As `read`; SnapshotInvalid where a chunk has another hash."""
        for index, data in zip(indices, self.read(indices), strict=True):
            if hashlib.sha256(data).digest() != self.digests[index]:
                raise SnapshotInvalid(f"{self.path} is damaged: chunk {index} has another SHA-256")
            yield data


class Packs:
    """All packs of a folder, and where each chunk is."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._find()

    def _find(self) -> None:
        self.packs = [_open(path) for path in sorted(self._folder.glob(f"*{PACK_SUFFIX}"))]
        self._places = {
            digest: (number, index)
            for number, pack in enumerate(self.packs)
            for index, digest in enumerate(pack.digests)
        }

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._places

    def holding(self, digests: Iterable[bytes]) -> list[Path]:
        """The packs that those chunks are in. SnapshotInvalid where one is missing."""
        return [self.packs[it].path for it in sorted({self._place(it)[0] for it in digests})]

    def read(self, digest: bytes) -> bytes:
        """A chunk. `Store.gc` may have moved it into another pack since these were found.

        SnapshotInvalid where it is missing or damaged.
        """
        try:
            return self._read(digest)
        except SnapshotNotFound:
            self._find()
            return self._read(digest)

    def _read(self, digest: bytes) -> bytes:
        number, index = self._place(digest)
        return next(self.packs[number].verified([index]))

    def image(self, nbytes: int, chunks: Chunks, used: Sequence[tuple[int, int]]) -> Image:
        """The memory that `chunks` are of; SnapshotInvalid where one is missing.

        Its packs are mapped, or brought together where they are too many to keep open.
        """
        places = [(number, *self._place(digest)) for number, digest in chunks.items()]
        needed = sorted({pack for _, pack, _ in places})
        if len(needed) > _MOST_OPEN:
            return Image.gather(nbytes, self._pieces(places), used)
        files = {pack: open_regular(self.packs[pack].path) for pack in needed}
        extents = (
            Extent(
                number * CHUNK_NBYTES,
                CHUNK_NBYTES,
                files[pack],
                self.packs[pack].data_offset + index * CHUNK_NBYTES,
            )
            for number, pack, index in places
        )
        return Image(nbytes, extents, used)

    def _place(self, digest: bytes) -> tuple[int, int]:
        if digest not in self._places:
            raise SnapshotInvalid(
                f"the store has no chunk {digest.hex()[:16]}…, which the snapshot needs"
            )
        return self._places[digest]

    def _pieces(self, places: Iterable[tuple[int, int, int]]) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) of chunks, pack by pack."""
        for pack, group in groupby(sorted(places, key=itemgetter(1)), key=itemgetter(1)):
            numbers, _, indices = zip(*group, strict=True)
            for number, data in zip(numbers, self.packs[pack].read(indices), strict=True):
                yield number * CHUNK_NBYTES, data


def write_pack(folder: Path, chunks: Iterable[tuple[bytes, bytes | memoryview]]) -> Path | None:
    """Writes chunks, as (digest, bytes), into a new pack; None where there are none."""
    contents = list(chunks)
    if not contents:
        return None
    digests = b"".join(digest for digest, _ in contents)
    n, data_nbytes = len(contents), len(contents) * CHUNK_NBYTES
    head = _header(n)
    path = folder / f"{hashlib.sha256(digests).hexdigest()}{PACK_SUFFIX}"
    with AtomicFile(path) as file:
        file.write(head, 0)
        for index, (_, data) in enumerate(contents):
            file.write(data, len(head) + index * CHUNK_NBYTES)
        file.write(digests, len(head) + data_nbytes)
        file.commit(len(head) + data_nbytes + len(digests))
    return path


def _header(n: int) -> bytes:
    data_nbytes = n * CHUNK_NBYTES
    return encode_safetensors(
        _FORMAT,
        [
            Tensor("chunks", "U8", [n, CHUNK_NBYTES], 0, data_nbytes),
            Tensor("sha256", "U8", [n, DIGEST_NBYTES], data_nbytes, n * DIGEST_NBYTES),
        ],
    )


def _open(path: Path) -> Pack:
    """Reads what is in a pack; SnapshotInvalid unless it is exactly what its name says."""
    file = open_regular(path)
    nbytes = os.fstat(file.fd).st_size
    offset, digests = _index(path, nbytes, lambda n, at: os.pread(file.fd, n, at))
    return Pack(path, offset, digests)


def unpack(path: Path, data: bytes) -> Iterator[tuple[bytes, memoryview]]:
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
    plausible = header_nbytes <= MAX_HEADER_NBYTES and n > 0 and left == 0
    if plausible and read(header_nbytes, 0) == _header(n):
        digests = read(n * DIGEST_NBYTES, header_nbytes + n * CHUNK_NBYTES)
    if path.name != f"{hashlib.sha256(digests).hexdigest()}{PACK_SUFFIX}":
        raise SnapshotInvalid(f"{path} is not a pack, or is truncated or damaged")
    return header_nbytes, [
        digests[i : i + DIGEST_NBYTES] for i in range(0, len(digests), DIGEST_NBYTES)
    ]
