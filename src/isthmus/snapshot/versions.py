"""Versions of the format: a snapshot has the oldest that can say all of it.

So it stays readable for older releases, and the hash of its manifest stays what it was.
"""

from __future__ import annotations

from typing import Any

from isthmus.snapshot.records import MEDIA_LIMITS, ActorRecord, ModelRecord, SessionRecord

FORMAT_VERSION = 2
FORMAT_VERSION_3 = 3
"""Of a snapshot with adapters or a 64-bit memory; any other stays readable for older releases."""
FORMAT_VERSION_4 = 4
"""Of a snapshot with a model in another class of width than that of a step by itself, or with a
session that asks for candidates; any other stays readable as before."""
FORMAT_VERSION_5 = 5
"""Of a snapshot with a model whose graph a library writes down; any other stays readable as
before."""
FORMAT_VERSION_6 = 6
"""Of a snapshot with a session whose layers have caches of different shapes, or keep states, or
that holds embeddings, or whose states a failed pass has spoilt; with other limits of media than the
usual ones; or whose guest has opened something by wasi-nn."""
FORMAT_VERSION_7 = 7
"""Of a snapshot of a command."""
FORMAT_VERSION_8 = 8
"""Of a snapshot in the middle of an answer."""
READABLE_VERSIONS = (1, 2, 3, 4, 5, 6, 7, 8)
"""Version 1 has no grammars; `_ADDED` has what else came later."""
_LATER_OF_SESSIONS = ("rows", "states_nbytes", "n_checkpoints", "spans", "is_lost")

_ADDED: dict[int, dict[str, tuple[str, ...]]] = {
    FORMAT_VERSION: {"manifest": ("grammars",), "limits": ("grammars",)},
    FORMAT_VERSION_3: {"memory": ("is_64",), "models": ("adapters",)},
    FORMAT_VERSION_4: {"models": ("width",), "sessions": ("top_k", "top_ptr")},
    FORMAT_VERSION_5: {"models": ("graph",), "sessions": ("outputs_nbytes", "memories")},
    FORMAT_VERSION_6: {"sessions": _LATER_OF_SESSIONS, "limits": MEDIA_LIMITS},
    FORMAT_VERSION_7: {"actor": ("argv",)},
    FORMAT_VERSION_8: {"actor": ("message",)},
}
"""What each version has that older ones are written without, so that their hashes stay."""


def leave_out_newer(held: dict[str, Any], version: int) -> None:
    """Takes what is newer than a version out of a manifest that says nothing of it."""
    newer = [it for each, it in _ADDED.items() if each > version]
    for place, names in [entry for added in newer for entry in added.items()]:
        for record in _records(held, place):
            for name in names:
                del record[name]


def _records(held: dict[str, Any], place: str) -> list[dict[str, Any]]:
    """The records of a manifest in which something was added."""
    if place == "manifest":
        return [held]
    found = held["actor"]["limits"] if place == "limits" else held[place]
    return [found] if isinstance(found, dict) else list(found)


def version_for(
    models: tuple[ModelRecord, ...],
    sessions: tuple[SessionRecord, ...],
    actor: ActorRecord,
    *,
    is_64: bool,
    nn: bool,
) -> int:
    """The oldest format version that can say all of it. `nn`: something is open by wasi-nn."""
    if actor.message is not None or actor.argv is not None:
        return FORMAT_VERSION_7 if actor.message is None else FORMAT_VERSION_8
    if any(it.rows or it.states_nbytes or it.spans or it.is_lost for it in sessions):
        return FORMAT_VERSION_6
    if nn or not actor.limits.has_usual_media:
        return FORMAT_VERSION_6
    if any(it.graph for it in models) or any(it.memories for it in sessions):
        return FORMAT_VERSION_5
    if any(it.width for it in models) or any(it.top_k for it in sessions):
        return FORMAT_VERSION_4
    return FORMAT_VERSION_3 if is_64 or any(it.adapters for it in models) else FORMAT_VERSION
