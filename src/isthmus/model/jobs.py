"""Jobs in which a pass is computed: others decode between two of them."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Protocol

from isthmus.device.base import Device
from isthmus.device.buffer import Binding
from isthmus.device.compute_thread import ComputeThread
from isthmus.native._ggml import GraphHead

JOB_S = 0.1
"""Seconds that one prefill job lasts; others decode between jobs. Were it shorter, a short prompt
would wait for a decode step at every layer."""


class Computes(Protocol):
    """What computes a graph: a Backend, or what stands for one."""

    @property
    def device(self) -> Device:
        """The device that it is of."""

    def compute(self, graph: int, *memories: Binding) -> None:
        """Computes a graph and waits for it. Raises DeviceFailed."""


class Parted(Protocol):
    """A graph that can be computed part by part."""

    @property
    def pointer(self) -> int:
        """The whole graph."""

    def parts(self, cuts: Sequence[int]) -> list[GraphHead]:
        """See `Graph.parts`."""


class Jobs:
    """Computes the graphs of one model's passes in jobs; each job ends between two layers.

    A part is what the device is given at once. Each part adds about 0.1 ms, so there are no more of
    them than jobs need, judged by how long the pass before took.
    """

    def __init__(self) -> None:
        self._token_s: float | None = None
        """Seconds that a token of the last pass took."""

    def compute(
        self,
        backend: Computes,
        graph: Parted,
        n_tokens: int,
        cuts: Sequence[int],
        *memories: Binding,
    ) -> Generator[None, None, None]:
        """Computes a graph in jobs of about `JOB_S` and yields between two of them.

        A part begins at some of `cuts`, which are numbers of nodes. How many parts and jobs there
        are changes no bit. A device that cannot split graphs has a single job. `memories` are as in
        `Backend.compute`: a device to which they are lent splits no graph.
        """
        if not backend.device.splits_graphs:
            backend.compute(graph.pointer, *memories)
            return
        first, *others = graph.parts(self._coarse(cuts, n_tokens))
        total_s, begin = 0.0, time.perf_counter()
        backend.compute(ctypes.addressof(first))
        for part in others:
            if (job_s := time.perf_counter() - begin) >= JOB_S:
                yield
                total_s, begin = total_s + job_s, time.perf_counter()
            backend.compute(ctypes.addressof(part))
        self._token_s = (total_s + time.perf_counter() - begin) / n_tokens

    def fit_one(self, n_tokens: int) -> bool:
        """Whether a pass over so many tokens is a single job, as far as is known."""
        return self._token_s is not None and self._token_s * n_tokens < JOB_S

    def _coarse(self, cuts: Sequence[int], n_tokens: int) -> Sequence[int]:
        """Those of the cuts that make parts of about half a job, or all."""
        if self._token_s is None:
            return cuts
        expected_s = self._token_s * n_tokens
        if 2 * expected_s >= JOB_S * len(cuts):
            return cuts
        n_parts = math.ceil(2 * expected_s / JOB_S)
        every = math.ceil(len(cuts) / n_parts)
        return cuts[every::every]


def finish(thread: ComputeThread, jobs: Iterator[None]) -> None:
    """Computes the jobs that are left, each as one job of the device's thread."""
    while thread.run(lambda: next(jobs, True)) is None:
        pass
