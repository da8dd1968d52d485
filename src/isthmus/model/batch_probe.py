"""Has a product of several columns the bits of several products? Asked of the library, not a table.

It depends on the library, the processor and the type of the weights: quantised rows are multiplied
one by one almost everywhere; F16 rows of several columns often go through another kernel, which
adds in another order. So one tensor of each type and shape among the model's weights is
multiplied with random columns, each alone and in batches of several sizes.
"""

from __future__ import annotations

import contextlib

import numpy as np

from isthmus.device.base import Backend, Device
from isthmus.device.graph import Graph, GraphAllocator, TensorContext
from isthmus.model.weights import Weights
from isthmus.native._ggml import GgmlType
from isthmus.units import DeviceAddr, align_up

_SIZES = (2, 3, 4, 5, 8, 16, 32)
_N = max(_SIZES)
_ALIGNMENT = 256
_COMMON = (GgmlType.Q4_0, GgmlType.Q8_0, GgmlType.F16, GgmlType.F32)
_PROBE_WIDTH = 1024


def batches_exactly(device: Device, backend: Backend, weights: Weights) -> bool:
    """Whether each column of a product is the same to the bit, alone and in any batch."""
    return all(
        _is_exact(device, backend, tensor, *shape)
        for (_, shape), tensor in matrices_of(weights).items()
    )


def matrices_of(weights: Weights) -> dict[tuple[GgmlType, tuple[int, ...]], int]:
    """One matrix of each type and shape."""
    return {
        (info.dtype, info.shape): weights.used(info.name)
        for info in weights.infos
        if len(info.shape) == 2
    }


def exact_types(device: Device, backend: Backend) -> list[str]:
    """The common weight types whose products of several columns have the bits of single ones."""
    if device.everywhere is None:
        return []
    return [dtype.name for dtype in _COMMON if _has_exact_products(device, backend, dtype)]


def _has_exact_products(device: Device, backend: Backend, dtype: GgmlType) -> bool:
    library, n = device.library, 128
    with contextlib.ExitStack() as stack:
        data = _random_rows(dtype, _PROBE_WIDTH, n)
        buffer = stack.enter_context(device.allocate_inputs(len(data)))
        context = stack.enter_context(TensorContext(library, 1))
        matrix = context.tensor(dtype, _PROBE_WIDTH, n)
        buffer.place(matrix, buffer.base)
        buffer.stage[:] = data
        buffer.push(0, len(data))
        return _is_exact(device, backend, matrix, _PROBE_WIDTH, n)


def _random_rows(dtype: GgmlType, width: int, n: int) -> bytes:
    """Bytes of a random matrix; in blocks of 32 elements behind a scale where it is quantised."""
    random = np.random.default_rng(1)
    if dtype in (GgmlType.F32, GgmlType.F16):
        kind = np.float32 if dtype is GgmlType.F32 else np.float16
        return random.standard_normal(width * n).astype(kind).tobytes()
    n_blocks, block = width * n // 32, 32 if dtype is GgmlType.Q8_0 else 16
    scales = random.uniform(0.01, 0.02, (n_blocks, 1)).astype(np.float16).view(np.uint8)
    quants = random.integers(0, 256, (n_blocks, block), dtype=np.uint8)
    return np.hstack([scales, quants]).tobytes()


def _is_exact(device: Device, backend: Backend, matrix: int, k: int, n: int) -> bool:
    columns = np.random.default_rng(0).standard_normal((_N, k), dtype=np.float32)
    alone = [product(device, backend, matrix, columns[i : i + 1], n) for i in range(_N)]
    return all(
        product(device, backend, matrix, columns[:size], n) == b"".join(alone[:size])
        for size in _SIZES
    )


def product(device: Device, backend: Backend, matrix: int, columns: np.ndarray, n: int) -> bytes:
    """The bytes of f32 [n, size] from a matrix [k, n] and columns [size][k]."""
    size, k = columns.shape
    out_nbytes, offset = 4 * n * size, align_up(4 * k * size, _ALIGNMENT)
    with contextlib.ExitStack() as stack:
        buffer = stack.enter_context(device.allocate_inputs(offset + out_nbytes))
        memory = stack.enter_context(GraphAllocator(device.library, device.buffer_type))
        graph = stack.enter_context(Graph(device.library, 8))
        x = graph.tensor(GgmlType.F32, k, size)
        buffer.place(x, buffer.base)
        buffer.stage[: columns.nbytes] = columns.tobytes()
        buffer.push(0, columns.nbytes)
        result = graph.matmul(matrix, x)
        buffer.place(result, DeviceAddr(buffer.base + offset))
        graph.output(result)
        memory.allocate(graph)
        backend.compute(graph.pointer)
        buffer.pull(offset, out_nbytes)
        return bytes(buffer.stage[offset : offset + out_nbytes])
