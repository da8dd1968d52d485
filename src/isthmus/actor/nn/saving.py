"""What a guest has opened by wasi-nn as bytes: a part of its snapshot.

The bytes may come from a stranger. Numbers that the host computes with are checked here; handles,
token ids and settings are checked whenever they are used.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from isthmus.actor.host_api.context import MAX_HANDLES
from isthmus.actor.nn.spans import Span, Spans
from isthmus.actor.nn.state import NnState
from isthmus.errors import SnapshotInvalid
from isthmus.units import WASM_PAGE

_MAX_NUMBERS = 2**30
"""Graphs or contexts that an actor has opened in all its life, so that there is room for more."""
_STATE = msgspec.json.Decoder(NnState)


def saved(state: NnState) -> bytes:
    """The state as bytes; none if the guest has opened nothing."""
    return msgspec.json.encode(state) if state.n_graphs else b""


def restored(
    data: bytes, nbytes: int, models: Collection[str], foreign: Collection[str] = ()
) -> NnState:
    """The state of an actor with `nbytes` of memory that was given `models`.

    Contexts of models in `foreign` are gone, since their tokens mean nothing to those. Raises
    SnapshotInvalid.
    """
    if not data:
        return NnState()
    try:
        state = _STATE.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise SnapshotInvalid(f"what the snapshot says of wasi-nn is malformed: {error}") from None
    _require_sound(state, nbytes, models)
    gone = [number for number, it in state.contexts.items() if it.model in foreign]
    spans = Spans(state.free)
    for number in gone:
        if span := state.contexts.pop(number).span:
            spans.give(span)
    state.free = spans.free
    return state


def _require_sound(state: NnState, nbytes: int, models: Collection[str]) -> None:
    named = {it.model for it in state.graphs.values()}
    named |= {it.model for it in state.contexts.values()}
    spans = [*state.free, *(it.span for it in state.contexts.values() if it.span)]
    spans.sort(key=lambda it: it.ptr)
    ends = [0, *(it.end for it in spans)]
    sound = (
        named <= {*models}
        and len(state.contexts) <= MAX_HANDLES
        and all(0 <= it < state.n_graphs for it in state.graphs)
        and all(0 <= it < state.n_contexts for it in state.contexts)
        and max(state.n_graphs, state.n_contexts) < _MAX_NUMBERS
        and all(_is_whole(it, nbytes) for it in spans)
        and all(end <= it.ptr for end, it in zip(ends, spans, strict=False))
    )
    if not sound:
        raise SnapshotInvalid("what the snapshot says of wasi-nn contradicts itself")


def _is_whole(span: Span, nbytes: int) -> bool:
    """Whether it consists of wasm pages of a memory of so many bytes."""
    aligned = span.ptr % WASM_PAGE == 0 == span.nbytes % WASM_PAGE
    return aligned and span.nbytes > 0 and span.ptr >= 0 and span.end <= nbytes
