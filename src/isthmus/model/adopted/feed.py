"""What libllama is given for one pass: tokens, or embeddings, and their positions.

A model with M-RoPE has four positions for each row of embeddings, axis by axis: time, height, width
and one that is always 0. A token has one, which holds on all axes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isthmus.model.adopted.library_model import LibraryModel
from isthmus.model.spans import AXES, Embeddings, Positions, Span, position_of
from isthmus.model.step import Chunk
from isthmus.native._llama import Batch

Ids = npt.NDArray[np.int32]
_MAX_ROWS = 256
"""Rows of embeddings that are told again at once: each is as wide as the model."""


@dataclass(frozen=True)
class Feed:
    """See the module. What it refers to must live until the pass has ended."""

    n: int
    ids: Ids | None = None
    """i32 [n], or None for embeddings."""
    address: int = 0
    """f32 [n, row_width], or 0 for tokens."""
    positions: Ids | None = None
    """i32 [n], or [4, n] of embeddings with axes; None: the next ones."""
    causal: bool = True

    @staticmethod
    def of_tokens(ids: Ids, positions: Ids | None = None) -> Feed:
        """Tokens, i32 [n]."""
        return Feed(len(ids), ids, positions=positions)

    def batch(self, outputs: npt.NDArray[np.int8] | None) -> Batch:
        """As libllama takes it; `outputs` says after which rows logits are wanted, None: after the
        last one."""
        ids, positions = self.ids, self.positions
        return Batch(
            self.n,
            None if ids is None else ids.ctypes.data,
            self.address or None,
            None if positions is None else positions.ctypes.data,
            None,
            None,
            None if outputs is None else outputs.ctypes.data,
        )


Given = Feed | Ids


def as_feed(given: Given) -> Feed:
    """What is given; tokens alone are at the next positions."""
    return given if isinstance(given, Feed) else Feed.of_tokens(given)


def feed_of(chunk: Chunk, *, has_axes: bool) -> Feed:
    """What a chunk gives to libllama after what its session holds."""
    session, embeddings = chunk.session, chunk.embeddings
    n, first = len(chunk.tokens), session.next_position
    if embeddings is None:
        return Feed.of_tokens(chunk.tokens, _following(first, n) if session.spans else None)
    return feed_of_rows(embeddings, first, has_axes)


def feed_of_rows(embeddings: Embeddings, first: int, has_axes: bool) -> Feed:
    """Embeddings, whose first one is at position `first` unless they have positions."""
    n = embeddings.n_rows
    positions = _on_axes(embeddings.positions, first, n) if has_axes else None
    return Feed(n, None, embeddings.address, positions, embeddings.causal)


def told_again(
    tokens: Sequence[int], spans: Sequence[Span], first: int, most: int, model: LibraryModel
) -> Iterator[Feed]:
    """What gives the rows from `first` on their positions in passes of at most `most` rows, which
    compute nothing: so embeddings are zeros."""
    nothing = np.zeros(0, dtype=np.float32)
    for begin, end, span in _runs(len(tokens), spans, first):
        at_once = most if span is None else min(most, _MAX_ROWS)
        for at in range(begin, end, at_once):
            n = min(at_once, end - at)
            if span is None:
                ids = np.asarray(tokens[at : at + n], dtype=np.int32)
                there = _following(position_of(spans, at), n) if spans else None
                yield Feed.of_tokens(ids, there)
                continue
            if nothing.size < n * model.row_width:
                nothing = np.zeros(n * model.row_width, dtype=np.float32)
            yield Feed(n, None, nothing.ctypes.data, _told_axes(span, at, n, model))


def _runs(
    n_tokens: int, spans: Sequence[Span], first: int
) -> Iterator[tuple[int, int, Span | None]]:
    """(begin, end, span) of the rows from `first` on: those of a span, and tokens between."""
    at = first
    for span in spans:
        if span.end <= at:
            continue
        if at < span.first:
            yield at, span.first, None
        yield max(at, span.first), span.end, span
        at = span.end
    if at < n_tokens:
        yield at, n_tokens, None


def _told_axes(span: Span, at: int, n: int, model: LibraryModel) -> Ids | None:
    if not model.has_axes:
        return None
    axes, begin = span.axes, at - span.first
    if axes is not None:
        return _on_axes(axes[:, begin : begin + n], 0, n)
    return _on_axes(None, span.after - span.n_rows + begin, n)


def _on_axes(positions: Positions | None, first: int, n: int) -> Ids:
    """i32 [4, n], of the next rows from `first` on if there are no positions."""
    found = np.zeros((AXES + 1, n), dtype=np.int32)
    found[:AXES] = _following(first, n) if positions is None else positions
    return found


def _following(first: int, n: int) -> Ids:
    return np.arange(first, first + n, dtype=np.int32)
