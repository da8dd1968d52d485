"""What an agent's record in an object store names: its snapshots, and the packs that they need."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from isthmus.server.storage.record import FullRecord, Stored


def with_snapshot(record: FullRecord, snapshot: str, packs: Iterable[str]) -> FullRecord:
    """The record that names its last snapshot and its packs too, and no more what is outdated, nor
    what was the middle of an answer."""
    record = without_midway(record, packs := list(packs))
    stored, oldest = record.stored or Stored(), -1 if record.outdated is None else record.outdated
    snapshots = {**stored.snapshots, record.position: snapshot}
    needed = {**stored.packs, **dict.fromkeys(packs, record.position)}
    stored = msgspec.structs.replace(
        stored,
        snapshots={at: it for at, it in snapshots.items() if at > oldest},
        packs={name: last for name, last in needed.items() if last > oldest},
    )
    return msgspec.structs.replace(record, stored=stored)


def with_midway(record: FullRecord, snapshot: str, packs: Iterable[str]) -> FullRecord:
    """The record that names the middle of an answer, in place of an earlier one."""
    before = set((record.stored or Stored()).passing)
    record = without_midway(record, packs := list(packs))
    stored = record.stored or Stored()
    stored = msgspec.structs.replace(
        stored,
        midway=snapshot,
        passing=tuple(it for it in packs if it not in stored.packs or it in before),
        packs={**stored.packs, **dict.fromkeys(packs, record.position + 1)},
    )
    return msgspec.structs.replace(record, stored=stored)


def without_midway(record: FullRecord, still: Iterable[str] = ()) -> FullRecord:
    """The record without the middle of an answer, and without packs that only that needed: but for
    those that are `still` needed."""
    stored, kept = record.stored or Stored(), set(still)
    gone = set(stored.passing) - kept
    stored = msgspec.structs.replace(
        stored,
        midway="",
        passing=(),
        packs={name: last for name, last in stored.packs.items() if name not in gone},
    )
    return msgspec.structs.replace(record, stored=stored)
