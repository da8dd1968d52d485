"""Packs: files of chunks, found by the hash of their contents.

1. u64 and header, as in any safetensors file; `__metadata__`: `format` = `isthmus-pack`
2. `chunks`, u8 [n, 16384], at a multiple of 16,384 bytes, so that runs of them can be mapped
3. `sha256`, u8 [n, 32]: the hash of each

A pack's name is the SHA-256 of its digests, so what two writers write alike is one file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from isthmus.errors import SnapshotError, SnapshotInvalid
from isthmus.memory import Extent, SharedFile
from isthmus.snapshot.atomic import AtomicFile
from isthmus.snapshot.chunk import CHUNK_NBYTES, DIGEST_NBYTES, Chunks
from isthmus.snapshot.header import LENGTH, MAX_HEADER_NBYTES, Tensor, encode_safetensors

PACK_SUFFIX = ".pack.safetensors"
_FORMAT = {"format": "isthmus-pack"}


@dataclass(frozen=True)
class Pack:
    """An open pack: `digests` in the order of its chunks, the first at `data_offset`."""

    path: Path
    file: SharedFile
    data_offset: int
    digests: Sequence[bytes]

    def extent(self, index: int, offset: int) -> Extent:
        """Chunk number `index` of this pack, as the bytes at `offset` of an image."""
        place = self.data_offset + index * CHUNK_NBYTES
        return Extent(offset, CHUNK_NBYTES, self.file, place)

    def read(self, index: int) -> bytes:
        """The bytes of chunk number `index`."""
        return os.pread(self.file.fd, CHUNK_NBYTES, self.data_offset + index * CHUNK_NBYTES)


class Packs:
    """All packs of a folder, and where each chunk is."""

    def __init__(self, folder: Path) -> None:
        self.packs = [_open(path) for path in sorted(folder.glob(f"*{PACK_SUFFIX}"))]
        self._places = {
            digest: (pack, index)
            for pack in self.packs
            for index, digest in enumerate(pack.digests)
        }

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._places

    def extents(self, chunks: Chunks) -> Iterator[Extent]:
        """Where an image finds its chunks; SnapshotInvalid where one is missing."""
        for number, digest in chunks.items():
            if digest not in self._places:
                raise SnapshotInvalid(
                    f"the store has no chunk {digest.hex()[:16]}…, which the snapshot needs"
                )
            pack, index = self._places[digest]
            yield pack.extent(index, number * CHUNK_NBYTES)


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
    """Opens a pack; SnapshotInvalid unless it is exactly what its name and length say."""
    try:
        file = SharedFile(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
    except OSError as error:
        raise SnapshotError(f"cannot read {path}: {error.strerror}") from None
    first = os.pread(file.fd, LENGTH.size, 0)
    header_nbytes = LENGTH.size + (LENGTH.unpack(first)[0] if len(first) == LENGTH.size else 0)
    rest = os.fstat(file.fd).st_size - header_nbytes
    n, left = divmod(rest, CHUNK_NBYTES + DIGEST_NBYTES)
    digests = b""
    plausible = header_nbytes <= MAX_HEADER_NBYTES and n > 0 and left == 0
    if plausible and os.pread(file.fd, header_nbytes, 0) == _header(n):
        digests = os.pread(file.fd, n * DIGEST_NBYTES, header_nbytes + n * CHUNK_NBYTES)
    if path.name != f"{hashlib.sha256(digests).hexdigest()}{PACK_SUFFIX}":
        raise SnapshotInvalid(f"{path} is not a pack, or is truncated or damaged")
    parts = [digests[i : i + DIGEST_NBYTES] for i in range(0, len(digests), DIGEST_NBYTES)]
    return Pack(path, file, header_nbytes, parts)
