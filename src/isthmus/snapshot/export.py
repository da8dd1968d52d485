"""A store's snapshot as the one file that needs nothing else, made while it is read.

It is the file that `save_file` would have written: the same manifest, so the same id and signature.
No more of it than a piece is in memory, and no file is kept open, so that a slow reader costs
little and holds nobody up.
"""

from __future__ import annotations

from collections.abc import Iterator

from isthmus.snapshot.chunk import CHUNK_NBYTES
from isthmus.snapshot.header import encode_header, tensors_of
from isthmus.snapshot.reader import Snapshot

_PIECE_CHUNKS = 16


class Export:
    """See the module. `nbytes` is the file's length."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        manifest = snapshot.manifest
        tensors = tensors_of(manifest, with_memory=True)
        self._head = encode_header(manifest.encode(), tensors, snapshot.signature)
        last = tensors[-1]
        self.nbytes = len(self._head) + last.offset + last.nbytes

    def pieces(self) -> Iterator[bytes]:
        """The file from its begin to its end, in pieces of 256 KiB at the most where it is large.

        SnapshotInvalid in the middle where a chunk is damaged, or was removed meanwhile.
        """
        yield self._head
        n_chunks = self._snapshot.manifest.memory.nbytes // CHUNK_NBYTES
        for first in range(0, n_chunks, _PIECE_CHUNKS):
            numbers = range(first, min(first + _PIECE_CHUNKS, n_chunks))
            yield b"".join(map(self._chunk, numbers))
        for part in self._snapshot.manifest.parts:
            yield self._snapshot.part(part.name)

    def _chunk(self, number: int) -> bytes:
        digest = self._snapshot.chunks.get(number)
        return bytes(CHUNK_NBYTES) if digest is None else self._snapshot.chunk(digest)
