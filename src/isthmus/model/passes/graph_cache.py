"""Graphs that are kept to be computed again, since building one takes a millisecond or more.

A graph is built upon inputs, and upon memory that all graphs of a cache share for their
intermediate results. The cache's generation says which inputs and which memory:

::

    generation   0                    1                         2
    graphs       a  b  c              d  e                      f
                 └─ freed when d needs more memory   └─ freed when the inputs are replaced

So every graph that is kept can be computed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from isthmus.device.base import Device
from isthmus.device.graph import Graph
from isthmus.device.graph_allocator import GraphAllocator

_Key = TypeVar("_Key", bound=Hashable)
_Graph = TypeVar("_Graph", bound=Graph)


class GraphCache(Generic[_Key, _Graph]):
    """Owns graphs of one generation, and their memory. Of these graphs, one runs at a time."""

    def __init__(self, device: Device, most: int) -> None:
        """`most`: how many graphs are kept; the one that was not used for longest is freed."""
        self._memory = GraphAllocator(device.library, device.buffer_type)
        self._most = most
        self._graphs: dict[_Key, _Graph] = {}
        """The one used last is at the end."""
        self.generation = 0
        """Goes up when what graphs are built upon changes."""

    @property
    def keys(self) -> list[_Key]:
        """The keys of all graphs, the one used last at the end."""
        return [*self._graphs]

    @property
    def graphs(self) -> list[_Graph]:
        """All graphs, the one used last at the end."""
        return [*self._graphs.values()]

    def try_get(self, key: _Key) -> _Graph | None:
        """The graph of that key; None if there is none of this generation."""
        graph = self._graphs.pop(key, None)
        if graph is not None:
            self._graphs[key] = graph
        return graph

    def put(self, key: _Key, graph: _Graph) -> None:
        """Keeps a graph that `allocate` placed last, under a key that has none; frees the one that
        is too many."""
        assert key not in self._graphs
        self._graphs[key] = graph
        while len(self._graphs) > self._most:
            self._graphs.pop(next(iter(self._graphs))).close()

    def allocate(self, graph: Graph) -> None:
        """Places a graph's intermediate results; one that is not put here must run before the next
        one is placed.

        Raises DeviceFailed.
        """
        before = self._memory.generation
        try:
            self._memory.allocate(graph)
        finally:
            if self._memory.generation != before:
                self.outdate()

    def outdate(self) -> None:
        """To be called before inputs that graphs read are freed: frees all of these graphs."""
        self.generation += 1
        self.free(lambda _: True)

    def free(self, which: Callable[[_Key], bool]) -> None:
        """Frees the graphs of these keys."""
        for key in [it for it in self._graphs if which(it)]:
            self._graphs.pop(key).close()

    def close(self) -> None:
        """Frees everything."""
        self.free(lambda _: True)
        self._memory.close()
