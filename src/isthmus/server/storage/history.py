"""An agent's turns: the last ones in its record, earlier ones in segments that never change.

So a message writes as much as it is long, and not as much as all messages before it. A segment is
written before the record that names it, and the record decides what has happened: a crash between
the two leaves a segment that nobody names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import msgspec

from isthmus.errors import SnapshotInvalid
from isthmus.server.storage.record import FullRecord, Record, Segment, Turn
from isthmus.units import KIB, MIB

TAIL_NBYTES = 16 * KIB
"""Bytes of turns, as JSON, that a record has itself; more become a segment. A larger record is
written with every message, a smaller one makes more files."""
TEXT_CHARACTERS = 256 * KIB
"""Characters of one input or output that are kept; the caller was told all of them."""
KEPT_NBYTES = 8 * MIB
"""Bytes of segments that an agent keeps; the oldest go first. A page shows all of them at once. A
chain of responses keeps all of them, and is not continued beyond that."""

_turns = msgspec.json.Decoder(tuple[Turn, ...])
Data = dict[Segment, bytes]


def with_turns(
    known: FullRecord | None, record: Record, turns: Iterable[Turn], holder: int = 0
) -> tuple[FullRecord, Data]:
    """The record with some more turns, and the segments that have to be written before it.

    `known` is what was there before, None for a new agent; `holder` is who writes the segments.
    """
    fields = {name: getattr(record, name) for name in Record.__struct_fields__}
    full = FullRecord(**fields) if known is None else msgspec.structs.replace(known, **fields)
    tail = [*map(_shortened, full.turns), *map(_shortened, turns)]
    segments, new = list(full.segments), Data()
    sizes = [len(msgspec.json.encode(turn)) for turn in tail]
    if sum(sizes) > TAIL_NBYTES:
        for part in _parts(tail, sizes):
            data = msgspec.json.encode(part)
            name = hashlib.sha256(data).hexdigest()
            last, nbytes = part[-1].position, len(data)
            segment = Segment(sha256=name, last=last, nbytes=nbytes, holder=holder)
            segments.append(segment)
            new[segment] = data
        tail = []
    may_drop = record.kind == "agent"
    while may_drop and len(segments) > 1 and sum(it.nbytes for it in segments) > KEPT_NBYTES:
        segments.pop(0)
    full = msgspec.structs.replace(full, turns=tuple(tail), segments=tuple(segments))
    return full, {it: data for it, data in new.items() if it in segments}


def turns_of(full: FullRecord, read: Callable[[Segment], bytes]) -> list[Turn]:
    """All turns that are kept, oldest first. `read` gives a segment's bytes. SnapshotInvalid where
    one is damaged."""
    turns: list[Turn] = []
    for segment in full.segments:
        data = read(segment)
        if hashlib.sha256(data).hexdigest() != segment.sha256:
            raise SnapshotInvalid(f"turns of agent {full.id} until {segment.last} are damaged")
        try:
            turns += _turns.decode(data)
        except (msgspec.MsgspecError, RecursionError) as error:
            said = f"turns of agent {full.id} until {segment.last} are none: {error}"
            raise SnapshotInvalid(said) from None
    return [*turns, *full.turns]


def _parts(turns: list[Turn], sizes: list[int]) -> Iterable[list[Turn]]:
    """Turns in segments of about a MiB: a record of an earlier release may have any number."""
    part: list[Turn] = []
    nbytes = 0
    for turn, size in zip(turns, sizes, strict=True):
        if part and nbytes + size > MIB:
            yield part
            part, nbytes = [], 0
        part.append(turn)
        nbytes += size
    yield part


def _shortened(turn: Turn) -> Turn:
    """The turn as it is kept."""
    texts = (turn.input, turn.output, turn.told or "")
    left_out = sum(max(0, len(it) - TEXT_CHARACTERS) for it in texts)
    if not left_out:
        return turn
    return msgspec.structs.replace(
        turn,
        input=turn.input[:TEXT_CHARACTERS],
        output=turn.output[:TEXT_CHARACTERS],
        told=None if turn.told is None else turn.told[:TEXT_CHARACTERS],
        n_left_out=turn.n_left_out + left_out,
    )
