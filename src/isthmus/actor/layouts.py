"""Sessions' layouts and spans, as manifests of snapshots say them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from isthmus.errors import SnapshotInvalid
from isthmus.model.adopted.layout import AdoptedLayout
from isthmus.model.layout import Layout
from isthmus.model.own.kv_cache import KV_TYPES, SPAN_ALIGNMENT, KvLayout
from isthmus.model.spans import AXES, Span
from isthmus.snapshot import Snapshot
from isthmus.snapshot.manifest import positions_part
from isthmus.snapshot.records import ModelRecord, SessionRecord, SpanRecord


def layout_of(record: SessionRecord, model: ModelRecord) -> Layout:
    """Where the session kept what, as the way of its model has it.

    Raises SnapshotInvalid if the record contradicts the model's, or itself.
    """
    if bool(record.memories) != bool(model.graph):
        raise SnapshotInvalid("a session has another layout than its model's graph")
    if record.memories:
        outputs_nbytes, remainder = record.outputs_nbytes, record.kv_offset % SPAN_ALIGNMENT
        layout = AdoptedLayout(
            record.n_ctx, record.n_vocab, outputs_nbytes, record.memories, remainder
        )
        if layout.kv_offset != record.kv_offset:
            raise SnapshotInvalid("a session's memories do not begin where they can")
        return layout
    return KvLayout(
        n_ctx=record.n_ctx,
        n_vocab=record.n_vocab,
        dtype=KV_TYPES[record.kv_type],
        row_nbytes=record.plane_rows,
        plain=not record.rows,
        kv_offset=record.kv_offset,
        states_nbytes=record.states_nbytes,
        n_checkpoints=record.n_checkpoints,
    )


def span_records(spans: Sequence[Span]) -> tuple[SpanRecord, ...]:
    """A session's spans without their positions, which are a part of their own."""
    each = ((it.first, it.n_rows, it.after, bool(it.positions)) for it in spans)
    return tuple(SpanRecord(*fields) for fields in each)


def spans_of(snapshot: Snapshot, record: SessionRecord) -> Iterator[Span]:
    """A session's spans. What is wrong with them shows when the session is opened."""
    left = snapshot.part(positions_part(record.handle)) if record.n_positions else b""
    for it in record.spans:
        n = 4 * AXES * it.n_rows if it.placed else 0
        yield Span(it.first, it.n_rows, it.after, left[:n])
        left = left[n:]
