"""Has libllama compute in jobs, between which others decode.

libllama's own call returns once all is computed. So a thread of its own makes that call. Where
libllama hands its graph to the backend, a function of ours gives it to the device's thread instead,
which computes it part by part, and then lets the call go on:

::

    the device's thread      │ wait │ part │ part │ (others decode) │ part │ wait │
    the call's thread        │ build the graph │ … waits …                 │ return │

So nothing computes but the device's thread, and a pass that is given up ends between two parts.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Generator, Sequence
from queue import SimpleQueue

from isthmus.device.base import Device
from isthmus.device.buffer import Binding
from isthmus.device.graph import parts_of
from isthmus.errors import DeviceFailed
from isthmus.model.jobs import Jobs
from isthmus.native._ggml import GraphHead
from isthmus.native.placing import Placing

_ABORTED = 1
"""`GGML_STATUS_ABORTED`."""
_FAILED = -1
"""`GGML_STATUS_FAILED`."""
_PRODUCT = b"MUL_MAT"


def computed_in_jobs(
    device: Device,
    placing: Placing,
    backends: Sequence[int],
    jobs: Jobs,
    n_tokens: int,
    call: Callable[[], int],
) -> Generator[None, None, int]:
    """The status that `call` returns: a call of libllama that computes with these backends.

    Each next() is a job, as `Jobs` has them. If the iterator is closed early, `call` has failed.
    Only on the device's thread. Raises DeviceFailed.
    """
    handed: SimpleQueue[tuple[int, int] | int] = SimpleQueue()
    statuses: SimpleQueue[int] = SimpleQueue()

    def hand_over(backend: int, graph: int) -> int:
        handed.put((backend, graph))
        return statuses.get()

    with placing.taking_over(backends, hand_over) as compute:
        thread = threading.Thread(target=lambda: _call(call, handed), daemon=True)
        thread.start()
        found = handed.get()
        try:
            while not isinstance(found, int):
                taken = _TakenBackend(device, compute, found[0])
                graph = _HandedGraph(device, found[1])
                yield from jobs.compute(taken, graph, n_tokens, graph.cuts)
                statuses.put(0)
                found = handed.get()
        finally:
            if not sys.is_finalizing():  # then no other thread runs any more
                while not isinstance(found, int):
                    statuses.put(_ABORTED)
                    found = handed.get()
                thread.join()
    return found


def _call(call: Callable[[], int], handed: SimpleQueue[tuple[int, int] | int]) -> None:
    """Hands over the status of a call, for which the device's thread waits."""
    status = _FAILED
    try:
        status = call()
    finally:
        handed.put(status)


class _HandedGraph:
    """A graph of libllama's, which has places for all of its tensors."""

    def __init__(self, device: Device, pointer: int) -> None:
        self.pointer = pointer
        self._library = device.library

    @property
    def cuts(self) -> list[int]:
        """The numbers of products: no kernel joins a product with what comes before it."""
        library, pointer = self._library, self.pointer
        describe, node = library.ggml_op_desc, library.ggml_graph_node
        every = range(1, library.ggml_graph_n_nodes(pointer))
        return [i for i in every if describe(node(pointer, i)) == _PRODUCT]

    def parts(self, cuts: Sequence[int]) -> list[GraphHead]:
        """See `Graph.parts`."""
        return parts_of(self.pointer, cuts)


class _TakenBackend:
    """A backend of libllama's, whose own function computes when it is asked here."""

    def __init__(self, device: Device, compute: Callable[[int, int], int], handle: int) -> None:
        self.device = device
        self._compute = compute
        self._handle = handle

    def compute(self, graph: int, *_memories: Binding) -> None:
        """Computes a graph. Raises DeviceFailed."""
        status = self.device.timed(self._compute, self._handle, graph)
        if status != 0:
            raise DeviceFailed(f"the device {self.device.name} failed with status {status}")
