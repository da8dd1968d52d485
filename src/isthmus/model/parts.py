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

Turn = Callable[[int], AbstractContextManager[Callable[[], float]]]
"""(n_tokens) -> the turn in which a chunk of so many tokens is computed; entering it may wait. It
gives what tells how many seconds the next job of it is to last."""


def nothing() -> None:
    """The check of whoever is never to stop."""


def at_once(_n_tokens: int) -> AbstractContextManager[Callable[[], float]]:
    """The turn of whoever need not wait for others."""
    return nullcontext(lambda: JOB_S)


def compute_parts(
    backend: Backend,
    graph: Graph,
    cuts: Sequence[int],
    check: Callable[[], None],
    job_s: Callable[[], float],
    *memories: Binding,
) -> None:
    """Computes a graph, cut at these nodes where the device can. `check` is called before each
    job of `job_s` seconds, and may raise. How many parts a job has changes no bit. `memories` as
    in `Backend.compute`: devices to which they are lent cut no graph."""
    if not backend.device.splits_graphs:
        check()
        backend.compute(graph.pointer, *memories)
        return
    with GraphParts(graph, cuts) as parts:
        left = deque(parts.pointers)
        while left:
            check()
            backend.device.compute_thread.run(lambda: _compute_some(backend, left, job_s()))


def _compute_some(backend: Backend, parts: deque[int], seconds: float) -> None:
    end = time.perf_counter() + seconds
    while parts:
        backend.compute(parts.popleft())
        if time.perf_counter() >= end:
            return
