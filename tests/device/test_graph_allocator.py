"""Where a graph's results lie depends on that graph alone."""

from __future__ import annotations

from isthmus.device import Device
from isthmus.device.graph import Graph
from isthmus.device.graph_allocator import GraphAllocator
from isthmus.native._ggml import GgmlType


def offsets(device: Device, memory: GraphAllocator, n: int) -> list[int]:
    """Of each result, from the first one's place on."""
    with Graph(device.library, 16) as graph:
        x = graph.tensor(GgmlType.F32, 64, n)
        wide = graph.tensor(GgmlType.F32, 64, 64)
        steps = [graph.add(x, x)]
        steps += [graph.matmul(wide, steps[0]), graph.add(steps[0], x)]
        steps += [graph.mul(steps[1], steps[2])]
        graph.output(steps[-1])
        memory.allocate(graph)
        places = [graph.describe(it).data for it in steps]
    return [int(it) - int(places[0]) for it in places]


def test_no_graph_is_placed_as_the_one_before(device: Device) -> None:
    with GraphAllocator(device.library, device.buffer_type) as memory:
        alone = offsets(device, memory, 4)
    with GraphAllocator(device.library, device.buffer_type) as memory:
        large = offsets(device, memory, 40)
        assert offsets(device, memory, 4) == alone != large
        assert offsets(device, memory, 40) == large
