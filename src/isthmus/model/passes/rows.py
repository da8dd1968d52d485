"""What a batch is given: the tokens of each session, as the rows of one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from isthmus.model.own.kv_cache import N_CTX_MULTIPLE
from isthmus.model.passes.batch_top import by_row
from isthmus.model.passes.joining import Joining, Run
from isthmus.model.sampling.top import Top
from isthmus.model.step import Step


class Rows:
    """Arrays of what each row of a batch is: the rows of runs, then those of nobody.

    Rows of nobody, in runs as well, write to where no guest can see it and read no cache.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        runs: Sequence[Run],
        idle: int = 0,
        tops: Sequence[Top | None] = (),
    ) -> None:
        """`runs` are those of the steps' tokens, in order; `idle` rows of nobody follow. `tops`:
        where each step's candidates go, those after its last token."""
        sessions = [step.session for step in steps for _ in step.tokens]
        places = [row for run in runs for row in run.rows] + [None] * idle
        self.n = len(places)
        self.runs, self.idle = tuple(runs), idle
        self.live = np.array([i for i, row in enumerate(places) if row is not None], dtype=np.int64)
        """Places that are somebody's."""
        order = [row for row in places if row is not None]
        self.order = order
        """The number of the token at each of these places, in the order of the steps."""
        self.sessions = [None if row is None else sessions[row] for row in places]
        self.tokens = np.zeros(self.n, dtype=np.int32)
        self.tokens[self.live] = [it for step in steps for it in step.tokens]
        self.tokens[self.live] = self.tokens[self.live][order]
        self.positions = self._spread([it for step in steps for it in step.positions()], -1)
        """-1 of nobody."""
        self.logits = self._spread([it for step in steps for it in step.places()], 0)
        """Host address of each row's logits."""
        self.tops: list[Top | None] = [None] * self.n
        """Where each row's candidates go."""
        if any(tops):
            self.tops = by_row(tops, [len(it.tokens) for it in steps], places)
        self.n_ctx = self._spread([it.layout.n_ctx for it in sessions], 0)
        """Rows of each session's cache."""

    @property
    def shape(self) -> Shape:
        """What the batch's graph depends on."""
        return Shape(tuple(len(run.rows) for run in self.runs), self.idle, self.runs[0].unseen)

    def n_kv(self, joining: Joining | None) -> npt.NDArray[np.int64]:
        """i64 [runs]: the cache rows that attention reads, as `rows_read` has it."""
        enough = -(self.positions + 1) // N_CTX_MULTIPLE * -N_CTX_MULTIPLE
        least = joining.least_kv if joining else 0
        floors = np.repeat([least * run.joined for run in self.runs], self.shape.runs)
        enough = np.maximum(enough[: len(floors)], floors)
        enough = np.minimum(enough, self.n_ctx[: len(floors)])
        starts = [0, *accumulate(self.shape.runs[:-1])]
        most: npt.NDArray[np.int64] = np.maximum.reduceat(enough, starts)
        return most

    def _spread(self, values: list[int], nobody: int) -> npt.NDArray[np.int64]:
        spread = np.full(self.n, nobody, dtype=np.int64)
        spread[self.live] = np.array(values, dtype=np.int64)[self.order]
        return spread


@dataclass(frozen=True)
class Shape:
    """What the graph of a batch depends on, beside the model."""

    runs: tuple[int, ...]
    """Rows of each run."""
    idle: int = 0
    """Rows of nobody behind them."""
    unseen: int = 0
    """Sequences of nobody that the kernel of a single row has beside it; see `Run`."""

    @property
    def n(self) -> int:
        """All rows."""
        return sum(self.runs) + self.idle
