"""What `embed` of the group `model` computes: tokens, and pictures and sounds among them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from itertools import groupby

from isthmus.abi import Errno
from isthmus.actor.host_api.context import Context
from isthmus.errors import GuestFault
from isthmus.model.media.medium import Medium, Part
from isthmus.units import HostAddr

_FIRST_MEDIUM = -2
"""The id that stands for the medium with the handle 0; the one with handle h has -2 - h."""
Jobs = Callable[[], Generator[None, None, None]]


def begin_embedding(
    c: Context, model: int, tokens: Sequence[int], room: HostAddr, *, normalised: bool
) -> tuple[Jobs, int]:
    """The jobs that leave an embedding at `room`, and how many tokens it takes. GuestFault,
    IsthmusError."""
    opened = c.model(model)
    if min(tokens) > _FIRST_MEDIUM:
        c.require_tokens(len(tokens), 0)
        opened.require_embeddable(tokens)
        jobs = partial(opened.embedding_jobs, tokens, c.binding, room, normalised=normalised)
        return jobs, len(tokens)
    parts = _parts(c, model, tokens)
    n_rows = sum(it.n_rows for it in parts)
    c.require_tokens(n_rows, 0)
    with c.explained():
        opened.require_embeddable_parts(parts)
    c.hold(sum(4 * it.n_rows * it.width for it in parts))
    begin = partial(opened.media_embedding_jobs, parts, opened.media_jobs, room)
    return partial(begin, normalised=normalised), n_rows


def _parts(c: Context, model: int, tokens: Sequence[int]) -> list[Part]:
    """The parts of open media, and tokens between them."""
    name, found = c.handles.model_of(model), list[Part]()
    for is_medium, run in groupby(tokens, lambda it: it <= _FIRST_MEDIUM):
        ids = tuple(run)
        if not is_medium:
            found.append(Part(len(ids), 1, 0, ids))
            continue
        for id_ in ids:
            handle = _FIRST_MEDIUM - id_
            medium = c.handles.get(handle, Medium)
            if c.handles.model_of(handle) != name:
                raise GuestFault(Errno.EINVAL)
            found += medium.parts
    return found
