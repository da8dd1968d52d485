"""Prompts in chunks, and the jobs in which a chunk is computed: others decode between two jobs."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from isthmus.device.base import Backend
from isthmus.device.buffer import Binding
from isthmus.device.compute_thread import ComputeThread
from isthmus.device.graph import Graph, GraphParts

if TYPE_CHECKING:
    from isthmus.model.session import Session

JOB_S = 0.1
"""Seconds that one prefill job lasts; others decode between jobs. Were it shorter, a short prompt
would wait for a decode step at every layer."""


@dataclass(frozen=True)
class Chunk:
    """Tokens that one session appends in a pass of prefill; each sees those before it."""

    session: Session
    tokens: npt.NDArray[np.int32]
    last: bool
    """Whether the prompt ends with it; the session then has the logits after its last token."""


def compute_parts(
    backend: Backend, graph: Graph, cuts: Sequence[int], *memories: Binding
) -> Generator[None, None, None]:
    """Computes a graph in jobs of about `JOB_S` and yields between two of them.

    A job ends at one of `cuts`, the numbers of nodes at which a part begins. How many parts a job
    has changes no bit. A device that cannot split graphs has a single job. `memories` are as in
    `Backend.compute`: a device to which they are lent splits no graph.
    """
    if not backend.device.splits_graphs:
        backend.compute(graph.pointer, *memories)
        return
    with GraphParts(graph, cuts) as parts:
        first, *others = parts.pointers
        end = time.perf_counter() + JOB_S
        backend.compute(first)
        for part in others:
            if time.perf_counter() >= end:
                yield
                end = time.perf_counter() + JOB_S
            backend.compute(part)


def finish(thread: ComputeThread, jobs: Iterator[None]) -> None:
    """Computes the jobs that are left, each as one job of the device's thread."""
    while thread.run(lambda: next(jobs, True)) is None:
        pass
