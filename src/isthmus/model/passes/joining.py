"""How sessions share a kernel of attention, so that the bits of each depend on that session alone.

One kernel attends to all sequences of a run: a series whose caches lie at equal distances, since a
distance is a stride like any other. A card that computes each by a kernel of its own has too little
to do. What a kernel adds in which order may depend on the number of its sequences and on the cache
rows that the longest one reads, so both are kept to what `attention_probe.py` found harmless.

::

    base        base + d    base + 2d   base + 3d
    │ session   │ session   │ nobody    │ session      one kernel over 4 sequences

A place of which nobody is, or which is added at the end, has a mask that shows nothing: its kernel
reads no cache, and its result is given to nobody. It is a row of the pass, but beside a session
that is the only one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from isthmus.model.own.kv_cache import KvLayout
from isthmus.model.own.session import own
from isthmus.model.probes.widths import MAX_ROWS
from isthmus.model.session import Session

_MAX_HOLES = 3
"""Places in a row that may be nobody's within a run."""


Lengths = TypeVar("Lengths", int, npt.NDArray[np.int64])


@dataclass(frozen=True)
class Joining:
    """What the kernel of a run is given."""

    sizes: tuple[int, ...] = tuple(range(1, MAX_ROWS + 1))
    """How many sequences a run may have, ascending."""
    least_kv: int = 0
    """Cache rows that it reads at least, or as many as its sessions have."""
    most_kv: int = 1 << 31
    """Cache rows that it reads at most: a session that needs more has a kernel of its own."""
    vector: bool = True
    """Whether the masks' rows lie at distances at which CUDA takes its vector kernel: the other one
    cuts its work into parts that depend on all sequences. Source: `fattn.cu` of ggml 0.25,
    `ggml_cuda_get_best_fattn_kernel`."""

    def mask_stride(self, n_kv: Lengths) -> Lengths:
        """Bytes that masks' rows of so many elements lie apart, as kernels are told."""
        return vector_stride(n_kv) if self.vector else 2 * n_kv

    def __str__(self) -> str:
        return f"{self.least_kv} {self.most_kv} {' '.join(map(str, self.sizes))}"

    @staticmethod
    def try_parse(text: str) -> Joining | None:
        """What `str` made this text of; None if the text is not of that form."""
        parts = text.split(" ")
        if len(parts) < 3 or not all(part.isdecimal() and len(part) < 10 for part in parts):
            return None
        least_kv, most_kv, *sizes = map(int, parts)
        ascending = all(a < b for a, b in pairwise([0, *sizes]))
        return Joining(tuple(sizes), least_kv, most_kv) if ascending else None

    def room_for(self, n_rows: int) -> int:
        """Sequences of the smallest run that has so many rows; 0 if there is none."""
        return next((size for size in self.sizes if size >= n_rows), 0)


@dataclass(frozen=True)
class Run:
    """Rows that one kernel attends to."""

    rows: tuple[int | None, ...]
    """The number of each row among those of a pass; None: nobody's. The first one is a row."""
    distance: int = 0
    """Bytes from the cache of one to that of the next."""
    joined: bool = False
    """Whether `Joining` says what the kernel is given, which may be a single sequence."""
    unseen: int = 0
    """Sequences of nobody that have no row in the pass: they ask what the first row asks, of a mask
    that shows nothing. Only of a pass with a single row, which is multiplied as such then."""


def try_runs(
    sessions: Sequence[Session], far: Set[int], joining: Joining | None, most: int
) -> list[Run] | None:
    """The runs of rows with these sessions, longest first: then there are few kinds of graphs.

    `far`: rows that need more cache rows than a run may read. None if all rows and the places of
    nobody are more than `most`: the caller makes two passes of the rows.
    """
    if joining is None:
        return [Run((row,)) for row in range(len(sessions))]
    alone = [Run((row,)) for row in sorted(far)]
    near = [row for row in range(len(sessions)) if row not in far]
    runs = []
    for rows, distance in _series(sessions, near, most - len(sessions), joining.sizes[-1]):
        missing = joining.room_for(len(rows)) - len(rows)
        if len(sessions) == 1:
            return [Run((*rows,), joined=True, unseen=missing)]
        runs.append(Run((*rows, *[None] * missing), distance, joined=True))
    if sum(len(run.rows) for run in runs) + len(alone) > most:
        return None
    runs.sort(key=lambda run: len(run.rows), reverse=True)
    return [*runs, *alone]


def _series(
    sessions: Sequence[Session], near: Sequence[int], room: int, longest: int
) -> Iterator[tuple[list[int | None], int]]:
    """Rows at equal distances, at most `longest`, and that distance: the usual one, or else that of
    the first two. Places of nobody between them are at most `room` together. The rows of one
    session are a series, without distance."""
    by_session: dict[Session, list[int]] = {}
    for row in near:
        by_session.setdefault(sessions[row], []).append(row)
    by_layout: dict[KvLayout, list[int]] = {}
    for session, rows in by_session.items():
        if len(rows) == 1:
            by_layout.setdefault(own(session).layout, []).extend(rows)
        for at in range(0, len(rows) if len(rows) > 1 else 0, longest):
            yield [*rows[at : at + longest]], 0
    for rows in by_layout.values():
        rows.sort(key=lambda row: own(sessions[row]).kv_base)
        bases = [own(sessions[row]).kv_base for row in rows]
        gaps = Counter(b - a for a, b in pairwise(bases))
        usual = distance = max(gaps, key=lambda it: (gaps[it], -it), default=0)
        series: list[int | None] = []
        for row, base, before in zip(rows, bases, [0, *bases], strict=False):
            if len(series) == 1 and (base - before) % usual:
                distance = base - before
            n_holes, rest = divmod(base - before, distance) if series else (0, 1)
            n_holes -= 1
            fits = len(series) + n_holes < longest and n_holes <= min(room, _MAX_HOLES)
            if series and (rest or not fits):
                yield series, distance
                series, distance = [], usual
            elif series:
                room -= n_holes
                series += [None] * n_holes
            series.append(row)
        yield series, distance


def vector_stride(n_kv: Lengths) -> Lengths:
    """A distance between masks' rows that is no multiple of 16 bytes; a mask has one row only."""
    return 2 * n_kv + 2
