"""Masks: what a token sees, moved token by token, and cut out of a pattern on the device."""

from __future__ import annotations

import numpy as np
import pytest

from isthmus.device import Device
from isthmus.device.graph import Graph
from isthmus.device.graph_allocator import GraphAllocator
from isthmus.model.passes.mask import MASKED, CausalPattern, Mask
from isthmus.native._ggml import GgmlType

N_CTX, N = 64, 8
WINDOWS = pytest.mark.parametrize("window", [None, 1, 5, 8, 64, 1000])


def expected(first: int, n_kv: int, n: int, window: int | None) -> np.ndarray:
    rows = np.full((n, n_kv), MASKED)
    for token in range(n):
        for row in range(n_kv):
            distance = first + token - row
            if distance >= 0 and (window is None or distance < window):
                rows[token, row] = 0
    return rows


@WINDOWS
def test_a_chunk_sees_what_it_may(device: Device, window: int | None) -> None:
    with device.allocate_inputs(2 * N_CTX * N) as buffer:
        mask = Mask(device, buffer, 0, (N_CTX, N), window)
        elements = np.frombuffer(buffer.stage, np.float16)
        for first, n_kv, n in ((0, 64, 8), (3, 32, 5), (56, 64, 8), (20, 64, 1)):
            mask.write(first, n_kv, n)
            found = elements[: n * n_kv].reshape(n, n_kv)
            assert np.array_equal(found, expected(first, n_kv, n, window))
        mask.close()


@WINDOWS
def test_a_single_tokens_mask_moves(device: Device, window: int | None) -> None:
    with device.allocate_inputs(2 * N_CTX) as buffer:
        mask = Mask(device, buffer, 0, (N_CTX, 1), window)
        elements = np.frombuffer(buffer.stage, np.float16)
        mask.write(9, N_CTX, 1)
        for position in range(10, N_CTX):
            mask.extend(position)
            assert np.array_equal(elements, expected(position, N_CTX, 1, window)[0])
        mask.close()


@WINDOWS
def test_a_part_of_the_pattern_is_a_chunks_mask(device: Device, window: int | None) -> None:
    backend = device.new_backend()
    for first, n_kv, n in ((0, 64, 8), (3, 32, 5), (56, 64, 8), (64 - 8, 64, 3)):
        with (
            device.allocate_inputs(2 * n_kv * n) as buffer,
            Graph(device.library, 8) as graph,
            GraphAllocator(device.library, device.buffer_type) as memory,
        ):
            pattern = CausalPattern(device, N, N_CTX, window)
            target = graph.tensor(GgmlType.F16, n_kv, n)
            buffer.place(target, buffer.base)
            graph.output(graph.copy_into(pattern.cut(graph, first, n_kv, n), target))
            memory.allocate(graph)
            device.compute_thread.run(lambda g=graph: backend.compute(g.pointer))
            found = np.frombuffer(buffer.stage, np.float16).reshape(n, n_kv)
            assert np.array_equal(found, expected(first, n_kv, n, window))
            pattern.close()
    backend.close()
