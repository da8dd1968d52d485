"""Chunks: the unit in which a linear memory is hashed, compared and shared.

16,384 bytes: a whole number of OS pages almost everywhere, so that a chunk can be mapped. A chunk
that is all zero has no digest and takes no space.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from isthmus.errors import SnapshotInvalid
from isthmus.native import libc
from isthmus.units import KIB, HostAddr

CHUNK_NBYTES = 16 * KIB
DIGEST_NBYTES = 32
_PART = 1024
"""Chunks that one thread hashes at a time: 16 MiB, in some 10 ms."""
_MAX_THREADS = 8
_Chunk = ctypes.c_ubyte * CHUNK_NBYTES

Chunks = Mapping[int, bytes]
"""Chunk number -> SHA-256 of its bytes, ascending; those that are all zero are left out."""


@dataclass(frozen=True)
class MemorySource:
    """Bytes to be saved: a linear memory that nobody changes meanwhile, and its chunks."""

    base: HostAddr
    nbytes: int
    chunks: Chunks

    def view(self, offset: int, nbytes: int) -> memoryview:
        """The bytes themselves, not a copy."""
        return memoryview((ctypes.c_ubyte * nbytes).from_address(self.base + offset)).cast("B")


def hash_chunks(
    base: HostAddr, nbytes: int, touched: Iterable[int], known: Chunks | None = None
) -> dict[int, bytes]:
    """The chunks of the memory at `base`: `touched` are hashed, all others as in `known`."""
    chunks = {n: digest for n, digest in (known or {}).items() if n * CHUNK_NBYTES < nbytes}
    numbers = [int(number) for number in touched]
    for number, digest in zip(numbers, _digests(base, numbers), strict=True):
        if digest is None:
            chunks.pop(number, None)
        else:
            chunks[number] = digest
    return dict(sorted(chunks.items()))


def _digests(base: HostAddr, numbers: Sequence[int]) -> Iterator[bytes | None]:
    """Of each of these chunks; None if it is all zero. Several threads hash many of them."""
    parts = [numbers[at : at + _PART] for at in range(0, len(numbers), _PART)]
    if len(parts) < 2:
        return iter([_digest(base, number) for number in numbers])
    with ThreadPoolExecutor(min(len(parts), _MAX_THREADS, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda part: [_digest(base, number) for number in part], parts)
        return itertools.chain.from_iterable(list(found))


def _digest(base: HostAddr, number: int) -> bytes | None:
    address = base + number * CHUNK_NBYTES
    if libc.is_zero(address, CHUNK_NBYTES):
        return None
    return hashlib.sha256(_Chunk.from_address(address)).digest()


def runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Ascending chunk numbers as ranges of bytes: (offset, nbytes)."""
    found = np.fromiter(numbers, np.int64)
    ends = np.flatnonzero(np.diff(found) != 1)
    firsts = found[np.concatenate([[0], ends + 1])] if len(found) else found
    lasts = found[np.concatenate([ends, [len(found) - 1]])] if len(found) else found
    for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
        yield first * CHUNK_NBYTES, (last + 1 - first) * CHUNK_NBYTES


def encode_chunks(chunks: Chunks) -> tuple[bytes, bytes]:
    """The numbers, u32 [n] little-endian, and the digests, u8 [n, 32]."""
    return struct.pack(f"<{len(chunks)}I", *chunks), b"".join(chunks.values())


def decode_chunks(numbers: bytes, digests: bytes, nbytes: int) -> dict[int, bytes]:
    """What `encode_chunks` made; SnapshotInvalid unless ascending and inside `nbytes`."""
    if len(numbers) % 4:
        raise SnapshotInvalid("the table of chunks ends inside a number")
    found = np.frombuffer(numbers, "<u4").astype(np.int64)
    if np.any(np.diff(found) <= 0) or (len(found) and found[-1] * CHUNK_NBYTES >= nbytes):
        raise SnapshotInvalid("the table of chunks is not in order, or leaves the memory")
    if len(digests) != len(found) * DIGEST_NBYTES:
        raise SnapshotInvalid("the table of chunks lacks digests")
    each = np.frombuffer(digests, f"V{DIGEST_NBYTES}")
    return dict(zip(found.tolist(), each.tolist(), strict=True))
