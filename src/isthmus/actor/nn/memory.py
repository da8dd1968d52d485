"""Memory for sessions that no guest has room for: the host grows the guest's linear memory.

What a session leaves is kept for the next one, so that loading and unloading takes no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from isthmus.actor.nn.fault import NnFault
from isthmus.actor.nn.spans import Span, Spans
from isthmus.errors import RegionError
from isthmus.units import MAX_NBYTES_32, WASM_PAGE, align_up, format_nbytes
from isthmus.wasm.wasi_nn import NnErrno


class NnMemory:
    """See the module. One for each actor."""

    def __init__(self) -> None:
        self.spans = Spans()
        self.grow: Callable[[int], int]
        """Makes linear memory so many bytes longer, and gives where they begin; Overloaded,
        RegionError."""

    def take(self, nbytes: int) -> Span:
        """A span of at least so many bytes, whole wasm pages. NnFault if there is no room."""
        whole = align_up(nbytes, WASM_PAGE)
        found = self.spans.try_take(whole)
        if found is not None:
            return found
        try:
            return Span(self.grow(whole), whole)
        except RegionError:
            raise NnFault(
                NnErrno.TOO_LARGE,
                f"there is no room for {format_nbytes(nbytes)} in the guest's memory, which can "
                f"have {format_nbytes(MAX_NBYTES_32)} at most: give a smaller ctx-size, a KV "
                "cache of q8_0 or q4_0 (--kv-type), or more memory (--memory)",
            ) from None

    def give(self, span: Span) -> None:
        """Takes a span back."""
        self.spans.give(span)

    @contextmanager
    def borrowed(self, nbytes: int) -> Iterator[Span]:
        """A span for a while."""
        span = self.take(nbytes)
        try:
            yield span
        finally:
            self.give(span)
