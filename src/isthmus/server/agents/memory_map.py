"""A map of an agent's linear memory: what lies where, what changed last, what forks share."""

from __future__ import annotations

from isthmus.server.agents.replies import MemoryMap, SessionMap
from isthmus.server.agents.shelf import Shelf
from isthmus.server.storage.record import Record
from isthmus.snapshot.chunk import CHUNK_NBYTES, runs
from isthmus.snapshot.manifest import GUEST_PART
from isthmus.wasm import layout_of


def map_memory(
    shelf: Shelf, record: Record, position: int, other: tuple[Record, int] | None = None
) -> MemoryMap:
    """The map of an agent at a position; what changed is what differs from the position before, or
    from the `other` agent at its position. SnapshotNotFound, SnapshotInvalid, StorageError."""
    now = shelf.snapshot(record, position)
    if other is None:
        before = _chunks_before(shelf, record, position)
    else:
        before = dict(shelf.snapshot(*other).chunks)
    chunks = now.chunks
    changed = sorted(n for n, digest in chunks.items() if before.get(n) != digest)
    shared = _shared(shelf, record, dict(chunks))
    sessions: list[SessionMap] = [
        {
            "begin": it.ptr,
            "logits": (it.ptr, 4 * it.n_vocab),
            "kv": (it.ptr + it.kv_offset, it.kv_nbytes),
            "n_tokens": it.n_tokens,
            "n_ctx": it.n_ctx,
        }
        for it in now.manifest.sessions
    ]
    layout = layout_of(now.part(GUEST_PART))
    return {
        "id": record.id,
        "position": position,
        "nbytes": now.manifest.memory.nbytes,
        "chunk_nbytes": CHUNK_NBYTES,
        "used": _ranges(sorted(chunks)),
        "changed": _ranges(changed),
        "shared": _ranges(shared),
        "stack": layout.stack,
        "data": layout.data,
        "sessions": sessions,
    }


def _chunks_before(shelf: Shelf, record: Record, position: int) -> dict[int, bytes]:
    """Chunks of the position before, by their numbers. That position may be one of the agent that
    this one was forked from, if that is still there."""
    origin, source = record.origin, record
    if origin is not None and position <= origin.position:
        if origin.id not in shelf.visible():
            return {}
        source = shelf.record(origin.id)
    return dict(shelf.snapshot(source, position - 1).chunks) if position > 0 else {}


def _shared(shelf: Shelf, record: Record, chunks: dict[int, bytes]) -> list[int]:
    """Chunks that the agent it was forked from, or a fork of it, has too."""
    family = [it for it in shelf.visible().values() if _are_kin(it, record)]
    shared: set[int] = set()
    for other in family[:8]:
        theirs = shelf.snapshot(other, other.position).chunks
        shared.update(n for n, digest in chunks.items() if theirs.get(n) == digest)
    return sorted(shared)


def _ranges(numbers: list[int]) -> list[tuple[int, int]]:
    """Chunks as (first, how many)."""
    return [(at // CHUNK_NBYTES, nbytes // CHUNK_NBYTES) for at, nbytes in runs(numbers)]


def _are_kin(a: Record, b: Record) -> bool:
    return a.id != b.id and (
        (a.origin is not None and a.origin.id == b.id)
        or (b.origin is not None and b.origin.id == a.id)
        or (a.origin is not None and b.origin is not None and a.origin.id == b.origin.id)
    )
