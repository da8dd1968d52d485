"""Prompts in chunks: whose turn it is to compute one, and the parts between which others decode."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from isthmus.device.base import Backend
from isthmus.device.buffer import Binding
from isthmus.device.graph import Graph, GraphParts

if TYPE_CHECKING:
    from isthmus.model.session import Session

JOB_S = 0.1
"""Of a prefill's jobs, between which others decode: shorter ones would have a short prompt wait for
a decode step of all others at each of its layers."""

Job = Callable[[], AbstractContextManager[float]]
"""Entered at the begin of each job of a chunk; gives how many seconds that is to last."""


@dataclass(frozen=True)
class Chunk:
    """What one session appends in a pass of prefill: tokens, of which each sees those before it."""

    session: Session
    tokens: npt.NDArray[np.int32]
    last: bool
    """Whether the prompt ends with it: the session has the logits after its last token then."""


class Turn(Protocol):
    """Sees to it that a chunk is computed: waits, and calls `alone` or has it done with others."""

    def __call__(
        self, n_tokens: int, alone: Callable[[Job], None], chunk: Chunk | None = None, /
    ) -> None:
        """`chunk` is given where it may be computed with those of other sessions."""


def at_once(_n_tokens: int, alone: Callable[[Job], None], _chunk: Chunk | None = None, /) -> None:
    """The turn of whoever need not wait for others."""
    alone(lambda: nullcontext(JOB_S))


def compute_parts(
    backend: Backend,
    graph: Graph,
    cuts: Sequence[int],
    check: Callable[[], None],
    job: Job,
    *memories: Binding,
) -> None:
    """Computes a graph, cut at these nodes where the device can. `check` is called before each
    job, and may raise. How many parts a job has changes no bit. `memories` as in
    `Backend.compute`: devices to which they are lent cut no graph."""
    if not backend.device.splits_graphs:
        check()
        backend.compute(graph.pointer, *memories)
        return
    with GraphParts(graph, cuts) as parts:
        left = deque(parts.pointers)
        while left:
            check()
            backend.device.compute_thread.run(lambda: _compute_some(backend, left, job))


def _compute_some(backend: Backend, parts: deque[int], job: Job) -> None:
    with job() as seconds:
        end = time.perf_counter() + seconds
        while parts:
            backend.compute(parts.popleft())
            if time.perf_counter() >= end:
                return
