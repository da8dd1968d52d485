"""The memory for graphs' intermediate results."""

from __future__ import annotations

from isthmus.device.graph import Graph
from isthmus.errors import DeviceFailed
from isthmus.native.loader import Library
from isthmus.native.owned import Owned


class GraphAllocator(Owned):
    """Owns the memory for intermediate results, shared by graphs that never run at the same time.

    `generation` changes when that memory had to move: graphs allocated before must not run again.
    """

    def __init__(self, library: Library, buffer_type: int) -> None:
        super().__init__(library.ggml_gallocr_new(buffer_type), library.ggml_gallocr_free)
        self.library = library
        self.generation = 0
        self.nbytes = 0
        """What that memory takes now."""

    def allocate(self, graph: Graph) -> None:
        """Places every tensor of the graph that has no place yet.

        Each graph is planned anew: ggml would place it as the one before, if that was as long and
        no smaller. Kernels are chosen by whether results overlap, so bits would depend on what was
        computed before. Raises DeviceFailed if there is no memory for it.
        """
        placed = self.library.ggml_gallocr_reserve(self.handle, graph.pointer) and (
            self.library.ggml_gallocr_alloc_graph(self.handle, graph.pointer)
        )
        nbytes = self.library.ggml_gallocr_get_buffer_size(self.handle, 0) if placed else 0
        if nbytes != self.nbytes:  # for larger memory, ggml frees what it had first
            self.nbytes, self.generation = nbytes, self.generation + 1
        if not placed:
            raise DeviceFailed("no memory for a graph's intermediate results")
