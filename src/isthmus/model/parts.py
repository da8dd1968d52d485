"""A long graph, computed in parts, between two of which the device's thread serves others."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from isthmus.device.base import Backend
from isthmus.device.buffer import Binding
from isthmus.device.graph import Graph, GraphParts

JOB_S = 0.1
"""Of a prefill's jobs, between which others decode: shorter ones would have a short prompt wait for
a decode step of all others at each of its layers."""

Job = Callable[[], AbstractContextManager[float]]
"""Entered at the begin of each job of a chunk; gives how many seconds that is to last."""
Turn = Callable[[int], AbstractContextManager[Job]]
"""(n_tokens) -> the turn in which a chunk of so many tokens is computed; entering it may wait."""


def nothing() -> None:
    """The check of whoever is never to stop."""


def at_once(_n_tokens: int) -> AbstractContextManager[Job]:
    """The turn of whoever need not wait for others."""
    return nullcontext(lambda: nullcontext(JOB_S))


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
