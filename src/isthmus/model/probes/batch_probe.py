"""Has a product of several columns the bits of several products? Asked of the library, not a table.

That decides whether prompts can be cut and packed in any way; for steps, `width_probe.py` asks more
closely. One tensor of each type and shape among the weights is multiplied with random columns, each
alone and in batches of several sizes; of a stack of experts, the first one.
"""

from __future__ import annotations

import contextlib

import numpy as np

from isthmus.device.base import Backend, Device
from isthmus.device.graph import Graph, GraphAllocator
from isthmus.model.weights import Weights
from isthmus.native._ggml import GgmlType
from isthmus.units import DeviceAddr, align_up

_SIZES = (2, 3, 4, 5, 8, 16, 32)
_N = max(_SIZES)
_ALIGNMENT = 256


def batches_exactly(
    device: Device, backend: Backend, weights: Weights, *, with_vectors: bool = False
) -> bool:
    """Whether each column of a product is the same to the bit, alone and in any batch."""
    return all(
        _is_exact(device, backend, tensor, *shape)
        for (_, shape), tensor in matrices_of(weights, with_vectors=with_vectors).items()
    )


def matrices_of(
    weights: Weights, *, with_routers: bool = False, with_vectors: bool = False
) -> dict[tuple[GgmlType, tuple[int, ...]], int]:
    """One matrix, or stack of matrices, of each type and shape.

    Routers are multiplied with several columns in a prefill only: see `Pass.route`. Vectors are
    matrices in an adapter of rank 1.
    """
    return {
        (info.dtype, info.shape if len(info.shape) > 1 else (*info.shape, 1)): tensor
        for info, tensor in ((info, weights.used(info.name)) for info in weights.multiplied)
        if (with_routers if info.name in weights.routers else with_vectors or len(info.shape) > 1)
    }


def _is_exact(
    device: Device, backend: Backend, matrix: int, k: int, n: int, n_expert: int = 0
) -> bool:
    columns = np.random.default_rng(0).standard_normal((_N, k), dtype=np.float32)
    alone = [product(device, backend, matrix, columns[i : i + 1], n, n_expert) for i in range(_N)]
    return all(
        product(device, backend, matrix, columns[:size], n, n_expert) == b"".join(alone[:size])
        for size in _SIZES
    )


def product(
    device: Device,
    backend: Backend,
    matrix: int,
    columns: np.ndarray,
    n: int,
    n_expert: int = 0,
) -> bytes:
    """The bytes of f32 [n, size] from a matrix [k, n] and columns [size][k].

    Of a stack of `n_expert` matrices, the first is taken for all columns.
    """
    size, k = columns.shape
    data = columns.tobytes() + bytes(4 * size)  # and the numbers of the experts: 0
    out_nbytes, offset = 4 * n * size, align_up(len(data), _ALIGNMENT)
    with contextlib.ExitStack() as stack:
        buffer = stack.enter_context(device.allocate_inputs(offset + out_nbytes))
        memory = stack.enter_context(GraphAllocator(device.library, device.buffer_type))
        graph = stack.enter_context(Graph(device.library, 8))
        x = graph.tensor(GgmlType.F32, k, 1, size)
        buffer.place(x, buffer.base)
        buffer.stage[: len(data)] = data
        buffer.push(0, len(data))
        if n_expert:
            chosen = graph.tensor(GgmlType.I32, 1, size)
            buffer.place(chosen, DeviceAddr(buffer.base + columns.nbytes))
            result = graph.matmul_chosen(matrix, x, chosen)
        else:
            result = graph.matmul(matrix, graph.reshape(x, k, size))
        buffer.place(result, DeviceAddr(buffer.base + offset))
        graph.output(result)
        memory.allocate(graph)
        backend.compute(graph.pointer)
        buffer.pull(offset, out_nbytes)
        return bytes(buffer.stage[offset : offset + out_nbytes])
