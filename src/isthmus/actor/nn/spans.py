"""Parts of a guest's memory that the host took for sessions, and that no session has now."""

from __future__ import annotations

import msgspec


class Span(msgspec.Struct, frozen=True):
    """A range of linear memory."""

    ptr: int
    nbytes: int

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.ptr + self.nbytes


class Spans:
    """See the module. Neighbours are one span."""

    def __init__(self, free: tuple[Span, ...] = ()) -> None:
        self.free = free
        """Ascending."""

    def try_take(self, nbytes: int) -> Span | None:
        """So many bytes, cut from the smallest span that has as many; None if there is none."""
        found = min((it for it in self.free if it.nbytes >= nbytes), default=None, key=_nbytes)
        if found is None:
            return None
        rest = Span(found.ptr + nbytes, found.nbytes - nbytes)
        self.free = tuple(it for it in self.free if it is not found)
        if rest.nbytes:
            self.give(rest)
        return Span(found.ptr, nbytes)

    def give(self, span: Span) -> None:
        """Takes a span back."""
        joined: list[Span] = []
        for it in sorted((*self.free, span), key=lambda it: it.ptr):
            if joined and joined[-1].end == it.ptr:
                joined[-1] = Span(joined[-1].ptr, joined[-1].nbytes + it.nbytes)
            else:
                joined.append(it)
        self.free = tuple(joined)


def _nbytes(span: Span) -> int:
    return span.nbytes
