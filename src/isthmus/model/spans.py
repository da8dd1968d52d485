"""Rows of a session that came of embeddings, such as a picture's, and of no token.

::

    rows       0 1 2 3 4 5 6 7 8 9      `Session.tokens` has NO_TOKEN at rows 3 to 6
    tokens     a b c . . . . d e f
    span             └─────┘            first=3, n_rows=4, after=5
    positions  0 1 2 3 3 4 4 5 6 7      of time; a picture may lie in fewer positions than rows

Without spans a row's number is its position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isthmus.units import HostAddr

NO_TOKEN = -1
"""What stands in a session's tokens for a row that came of an embedding."""
AXES = 3
"""Time, height and width: the positions that M-RoPE gives a row."""
Positions = npt.NDArray[np.int32]
"""i32 [AXES, n]."""


@dataclass(frozen=True)
class Embeddings:
    """Rows that a pass takes in place of tokens; each sees those before it."""

    address: HostAddr
    """f32 [n, width], a multiple of 32, in the memory of the session's guest."""
    n_rows: int
    width: int
    """Numbers of a row."""
    positions: Positions | None = None
    """Absolute ones, for M-RoPE; None: each row follows the one before it."""
    causal: bool = True
    """False: each row sees the whole span as well."""

    def part(self, at: int, n: int) -> Embeddings:
        """The rows from `at` on, `n` of them or those that are left."""
        positions = None if self.positions is None else self.positions[:, at : at + n]
        address = HostAddr(self.address + 4 * self.width * at)
        n = min(n, self.n_rows - at)
        return Embeddings(address, n, self.width, positions, self.causal)


@dataclass(frozen=True)
class Span:
    """See the module. It is kept whole or forgotten whole."""

    first: int
    n_rows: int
    after: int
    """The position of what comes next."""
    positions: bytes = b""
    """i32 [AXES, n_rows]; empty if each row follows the one before it."""

    @property
    def end(self) -> int:
        """The row after the last one."""
        return self.first + self.n_rows

    @property
    def axes(self) -> Positions | None:
        """The positions as numbers."""
        if not self.positions:
            return None
        return np.frombuffer(self.positions, np.int32).reshape(AXES, self.n_rows)

    @staticmethod
    def of(embeddings: Embeddings, first: int, position: int) -> Span:
        """The span that rows become whose first one is row `first`, and at `position` if they have
        no positions of their own."""
        n, positions = embeddings.n_rows, embeddings.positions
        if positions is None:
            return Span(first, n, position + n)
        return Span(first, n, int(positions.max()) + 1, positions.tobytes())


def position_of(spans: Sequence[Span], row: int) -> int:
    """The position of a row that belongs to no span, or comes after all rows."""
    for span in reversed(spans):
        if span.end <= row:
            return span.after + row - span.end
    return row


def cut_span(spans: Sequence[Span], n_rows: int) -> Span | None:
    """The span of which the first `n_rows` rows of a session hold only a part."""
    return next((it for it in spans if it.first < n_rows < it.end), None)


def are_spans_of(spans: Sequence[Span], tokens: Sequence[int], n_ctx: int) -> bool:
    """Whether spans that a stranger wrote down can be those of a session's tokens."""
    ids = np.asarray(tokens, dtype=np.int32)
    covered = np.zeros(len(ids), dtype=bool)
    row = position = 0
    for span in spans:
        position += span.first - row
        if not (span.n_rows > 0 and row <= span.first and span.end <= len(ids)):
            return False
        if not _positions_are_good(span, position, n_ctx):
            return False
        covered[span.first : span.end] = True
        row, position = span.end, span.after
    return bool(np.array_equal(covered, ids == NO_TOKEN))


def _positions_are_good(span: Span, position: int, n_ctx: int) -> bool:
    if len(span.positions) not in (0, 4 * AXES * span.n_rows):
        return False
    axes = span.axes
    if axes is None:
        return span.after == position + span.n_rows
    return are_positions(axes, position, n_ctx) and span.after == int(axes.max()) + 1


def are_positions(axes: Positions, position: int, n_ctx: int) -> bool:
    """Whether rows can have these positions after `position`: none lies before it or behind the
    context, and time does not go back."""
    return bool(axes.min() >= position and axes.max() < n_ctx and (np.diff(axes[0]) >= 0).all())
