"""What a snapshot holds, what differs between two, and where one comes from: without a model."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

from isthmus.errors import SnapshotError
from isthmus.printable import printable
from isthmus.snapshot.chunk import CHUNK_NBYTES
from isthmus.snapshot.header import Tensor, tensors_of
from isthmus.snapshot.manifest import GUEST_PART, text_part, tokens_part
from isthmus.snapshot.reader import Snapshot, open_snapshot
from isthmus.snapshot.records import EMITTED_PART, GlobalRecord

_LAYER = re.compile(r"(?<=\.[kv])\.\d+$")
_EXCERPT = 400
"""Characters of text that a report shows of each end."""


@dataclass(frozen=True)
class SessionReport:
    """One session."""

    handle: int
    model: str
    n_tokens: int
    n_ctx: int
    kv_type: str
    kv_nbytes_used: int
    has_logits: bool
    n_embedded: int
    """Tokens that are rows of pictures or sounds: only a guest that keeps the files can make them
    again."""
    text: str


@dataclass(frozen=True)
class Inspection:
    """One snapshot."""

    path: str
    id: str
    parent: str | None
    created_ns: int
    isthmus: str
    signed: bool
    self_contained: bool
    guest: str
    guest_sha256: str
    guest_nbytes: int
    args: tuple[str, ...]
    argv: tuple[str, ...] | None
    """A command's arguments; `args` are its variables then. None for any other guest."""
    tools: tuple[str, ...]
    n_messages: int
    answered: str | None
    """What is said of the answer in whose middle it is; None between two messages."""
    memory_nbytes: int
    memory_nbytes_used: int
    file_nbytes: int
    disk_nbytes: int
    models: tuple[dict[str, str | int | bool | list[dict[str, str | float]]], ...]
    sessions: tuple[SessionReport, ...]
    n_globals: int
    device: str
    library: str


@dataclass(frozen=True)
class SessionDifference:
    """One session in two snapshots."""

    handle: int
    n_common_tokens: int
    n_tokens_before: int
    n_tokens_after: int
    text_before: str
    """What follows the text that both have in common."""
    text_after: str


@dataclass(frozen=True)
class Difference:
    """Two snapshots."""

    before: str
    after: str
    same: bool
    n_chunks_changed: int
    nbytes_changed: int
    """In whole chunks of 16,384 bytes."""
    places: dict[str, int]
    """Chunks changed, by the tensors that they are part of, all layers together."""
    globals: tuple[str, ...]
    records: tuple[str, ...]
    sessions: tuple[SessionDifference, ...]


def inspect(snapshot: Snapshot) -> Inspection:
    """What a snapshot holds."""
    manifest = snapshot.manifest
    return Inspection(
        path=str(snapshot.path),
        id=snapshot.id,
        parent=manifest.parent,
        created_ns=manifest.created_ns,
        isthmus=manifest.isthmus,
        signed=snapshot.signed,
        self_contained=snapshot.self_contained,
        guest=manifest.guest.name,
        guest_sha256=manifest.guest.sha256,
        guest_nbytes=len(snapshot.part(GUEST_PART)),
        args=manifest.actor.args,
        argv=manifest.actor.argv,
        tools=manifest.actor.tools,
        n_messages=manifest.actor.n_messages,
        answered=_answered(snapshot),
        memory_nbytes=manifest.memory.nbytes,
        memory_nbytes_used=len(snapshot.chunks) * CHUNK_NBYTES,
        file_nbytes=snapshot.file_nbytes,
        disk_nbytes=snapshot.disk_nbytes,
        models=tuple(msgspec.to_builtins(model) for model in manifest.models),
        sessions=tuple(_session_reports(snapshot)),
        n_globals=len(manifest.globals),
        device=manifest.device.name,
        library=manifest.device.library,
    )


def _answered(snapshot: Snapshot) -> str | None:
    if snapshot.manifest.actor.message is None:
        return None
    return snapshot.part(EMITTED_PART).decode(errors="replace")


def _session_reports(snapshot: Snapshot) -> Iterator[SessionReport]:
    for it in snapshot.manifest.sessions:
        yield SessionReport(
            handle=it.handle,
            model=it.model,
            n_tokens=it.n_tokens,
            n_ctx=it.n_ctx,
            kv_type=it.kv_type,
            kv_nbytes_used=it.kv_nbytes_used,
            has_logits=it.has_logits,
            n_embedded=it.n_embedded,
            text=_text(snapshot, it.handle),
        )


def diff(before: Snapshot, after: Snapshot) -> Difference:
    """What differs: memory in chunks, globals, tokens, and what the host keeps."""
    numbers = before.chunks.keys() | after.chunks.keys()
    changed = sorted(n for n in numbers if before.chunks.get(n) != after.chunks.get(n))
    globals_ = tuple(_global_changes(before.manifest.globals, after.manifest.globals))
    records = tuple(_record_changes(before, after))
    sessions = tuple(_session_differences(before, after))
    return Difference(
        before=before.id,
        after=after.id,
        same=not (changed or globals_ or records or sessions),
        n_chunks_changed=len(changed),
        nbytes_changed=len(changed) * CHUNK_NBYTES,
        places=_places(changed, tensors_of(after.manifest, with_memory=True)),
        globals=globals_,
        records=records,
        sessions=sessions,
    )


def _global_changes(
    before: tuple[GlobalRecord, ...], after: tuple[GlobalRecord, ...]
) -> Iterator[str]:
    old = {it.index: it.bits for it in before}
    new = {it.index: it.bits for it in after}
    for index in sorted(old.keys() | new.keys()):
        if old.get(index) != new.get(index):
            yield f"global {index}: {old.get(index, 'none')} -> {new.get(index, 'none')}"


def _record_changes(before: Snapshot, after: Snapshot) -> Iterator[str]:
    for part in ("guest", "memory", "device", "actor"):
        old, new = getattr(before.manifest, part), getattr(after.manifest, part)
        for name in old.__struct_fields__:
            if name != "n_chunks" and getattr(old, name) != getattr(new, name):
                yield f"{part}.{name}: {getattr(old, name)} -> {getattr(new, name)}"
    if before.manifest.models != after.manifest.models:
        yield "models or their settings"


def _session_differences(before: Snapshot, after: Snapshot) -> Iterator[SessionDifference]:
    handles = {it.handle for it in (*before.manifest.sessions, *after.manifest.sessions)}
    for handle in sorted(handles):
        old, new = _tokens(before, handle), _tokens(after, handle)
        if old == new:
            continue
        n = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), None)
        text_old, text_new = _text(before, handle), _text(after, handle)
        pairs = enumerate(zip(text_old, text_new, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), min(len(text_old), len(text_new)))
        yield SessionDifference(
            handle=handle,
            n_common_tokens=min(len(old), len(new)) if n is None else n,
            n_tokens_before=len(old),
            n_tokens_after=len(new),
            text_before=text_old[at:],
            text_after=text_new[at:],
        )


def _places(changed: Iterable[int], tensors: list[Tensor]) -> dict[str, int]:
    places: dict[str, int] = {}
    for number in changed:
        at = number * CHUNK_NBYTES
        for tensor in tensors:
            if tensor.offset < at + CHUNK_NBYTES and at < tensor.offset + tensor.nbytes:
                name = _LAYER.sub(" of all layers", tensor.name)
                places[name] = places.get(name, 0) + 1
    return places


def lineage(snapshot: Snapshot) -> Iterator[Snapshot | str]:
    """The snapshot, its parent, and so on; at last the id of one that is not in its folder."""
    by_id: dict[str, Snapshot] = {}
    for path in snapshot.path.parent.glob("*.safetensors"):
        try:
            found = open_snapshot(path)
        except SnapshotError:
            continue
        by_id[found.id] = found
    seen: Snapshot | None = snapshot
    while seen is not None:
        yield seen
        parent = seen.manifest.parent
        seen = by_id.pop(parent, None) if parent else None
        if parent and seen is None:
            yield parent


def excerpt(text: str) -> str:
    """The beginning and the end of a long text, printable."""
    text = printable(text, lines=True)
    if len(text) <= 2 * _EXCERPT:
        return text
    return f"{text[:_EXCERPT]}\n[… {len(text) - 2 * _EXCERPT} characters …]\n{text[-_EXCERPT:]}"


def _text(snapshot: Snapshot, handle: int) -> str:
    return _part(snapshot, text_part(handle)).decode(errors="replace")


def _tokens(snapshot: Snapshot, handle: int) -> array[int]:
    return array("i", _part(snapshot, tokens_part(handle)))


def _part(snapshot: Snapshot, name: str) -> bytes:
    """A part, or nothing where a snapshot has no such session."""
    known = {part.name for part in snapshot.manifest.parts}
    return snapshot.part(name) if name in known else b""
