"""A snapshot about to be written, and writing it as one file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.errors import SnapshotError, SnapshotInvalid
from isthmus.snapshot.atomic import AtomicFile, explained, require_replaceable
from isthmus.snapshot.chunk import DIGEST_NBYTES, MemorySource, encode_chunks, runs
from isthmus.snapshot.header import digest, encode_header, is_snapshot, sign, tensors_of
from isthmus.snapshot.manifest import DIGESTS_PART, NUMBERS_PART, Manifest, decode_manifest
from isthmus.snapshot.records import Dtype, MemoryRecord, PartRecord

_HEAD_NBYTES = 256


@dataclass(frozen=True)
class Saved:
    """What became of a snapshot that was written."""

    path: Path
    id: str
    nbytes_written: int
    """Of the file, or of what was new in the store."""
    n_chunks_written: int
    n_chunks: int
    """Chunks of the memory that are not all zero."""


@dataclass(frozen=True)
class Draft:
    """All that a snapshot holds. `parts` are U8 or I32 arrays by name."""

    manifest: Manifest
    parts: Mapping[str, bytes]
    memory: MemorySource

    @staticmethod
    def make(
        memory: MemorySource,
        parts: Mapping[str, tuple[Dtype, bytes]],
        *,
        is_64: bool = False,
        **records: Any,
    ) -> Draft:
        """A draft whose manifest has `records` and describes `parts` and the table of chunks.
        `is_64` says of what kind the memory is.

        Raises SnapshotError where a reader would refuse it.
        """
        numbers, digests = encode_chunks(memory.chunks)
        n = len(memory.chunks)
        arrays: dict[str, tuple[Dtype, tuple[int, ...], bytes]] = {
            NUMBERS_PART: ("U32", (n,), numbers),
            DIGESTS_PART: ("U8", (n, DIGEST_NBYTES), digests),
        }
        for name, (dtype, data) in parts.items():
            arrays[name] = (dtype, (len(data) // (1 if dtype == "U8" else 4),), data)
        # Tensors of four-byte elements first, so that all begin at a multiple of four.
        ordered = sorted(arrays, key=lambda name: arrays[name][0] == "U8")
        manifest = Manifest(
            memory=MemoryRecord(memory.nbytes, n, is_64),
            parts=tuple(
                PartRecord(name, dtype, shape, hashlib.sha256(data).hexdigest())
                for name in ordered
                for dtype, shape, data in (arrays[name],)
            ),
            **records,
        )
        _require_readable(manifest)
        return Draft(manifest, {name: arrays[name][2] for name in ordered}, memory)

    @property
    def id(self) -> str:
        """The snapshot's id."""
        return digest(self.manifest.encode())


def _require_readable(manifest: Manifest) -> None:
    """What is written must be what a reader takes."""
    try:
        decode_manifest(manifest.encode())
        tensors_of(manifest, with_memory=True)
    except (SnapshotInvalid, UnicodeEncodeError) as error:
        raise SnapshotError(f"the actor cannot be saved: {error}") from None


def save_file(draft: Draft, path: Path, key: bytes | None = None) -> Saved:
    """Writes a snapshot that needs nothing else, as one sparse file; replaces `path` whole.

    Raises SnapshotError where it cannot be written, or `path` is anything but a snapshot; it is
    then what it was.
    """
    require_target(path)
    text = draft.manifest.encode()
    with AtomicFile(path) as file:
        header, end = write_head(file, draft, text, key, with_memory=True)
        n_written = 0
        for offset, nbytes in runs(draft.memory.chunks):
            file.write(draft.memory.view(offset, nbytes), header + offset)
            n_written += nbytes
        file.commit(end)
    n_chunks = len(draft.memory.chunks)
    parts_nbytes = end - header - draft.memory.nbytes
    return Saved(path, digest(text), header + n_written + parts_nbytes, n_chunks, n_chunks)


def require_target(path: Path) -> None:
    """SnapshotError unless a snapshot may be saved at `path`: in the place of nothing, of an empty
    file or of a snapshot.
    """
    require_replaceable(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    except OSError as error:
        raise SnapshotError(
            f"{path} exists and cannot be read: {error.strerror}; give another name"
        ) from None
    try:
        with explained(path):
            head = os.read(fd, _HEAD_NBYTES)
    finally:
        os.close(fd)
    if head and not is_snapshot(head):
        raise SnapshotError(f"{path} exists and is no snapshot: give another name, or remove it")


def save_recipe(draft: Draft, path: Path, key: bytes | None) -> Saved:
    """Writes a snapshot whose chunks lie elsewhere, into a folder that is swept."""
    require_target(path)
    text = draft.manifest.encode()
    with AtomicFile(path, swept=True) as file:
        _, end = write_head(file, draft, text, key, with_memory=False)
        file.commit(end)
    return Saved(path, digest(text), end, 0, len(draft.memory.chunks))


def write_head(
    file: AtomicFile, draft: Draft, text: str, key: bytes | None, *, with_memory: bool
) -> tuple[int, int]:
    """Writes header and parts. Returns where the data section begins and where the file ends."""
    tensors = tensors_of(draft.manifest, with_memory=with_memory)
    header = encode_header(text, tensors, sign(text, key) if key else None)
    file.write(header, 0)
    end = len(header)
    for tensor in tensors:
        end = len(header) + tensor.offset + tensor.nbytes
        if tensor.name in draft.parts:
            file.write(draft.parts[tensor.name], len(header) + tensor.offset)
    return len(header), end
