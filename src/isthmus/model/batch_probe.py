"""Has a product of several columns the bits of several products? Asked of the library, not a table.

It depends on the library, the processor and the type of the weights: quantised rows are multiplied
one by one almost everywhere; F16 rows of several columns often go through another kernel, which
adds in another order. So one tensor of each type and shape among the model's weights is
multiplied with random columns, each alone and in batches of several sizes; of a stack of experts,
the first one.
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


def batches_exactly(
    device: Device, backend: Backend, weights: Weights, *, with_vectors: bool = False
) -> bool:
    """Whether each column of a product is the same to the bit, alone and in any batch."""
    return all(
        _is_exact(device, backend, tensor, *shape)
        for (_, shape), tensor in matrices_of(weights, with_vectors=with_vectors).items()
    )


def adds_exactly(device: Device, backend: Backend, adapter: Weights) -> bool:
    """The same of an adapter's matrices, as `Pass.separately` has a batch multiply with them."""
    return all(
        _is_exact(device, backend, tensor, *shape, apart=True)
        for (_, shape), tensor in matrices_of(adapter, with_vectors=True).items()
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
        for info, tensor in ((info, weights.used(info.name)) for info in weights.infos)
        if (with_routers if info.name in weights.routers else with_vectors or len(info.shape) > 1)
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


def _is_exact(
    device: Device,
    backend: Backend,
    matrix: int,
    k: int,
    n: int,
    n_expert: int = 0,
    *,
    apart: bool = False,
) -> bool:
    columns = np.random.default_rng(0).standard_normal((_N, k), dtype=np.float32)
    alone = [product(device, backend, matrix, columns[i : i + 1], n, n_expert) for i in range(_N)]
    return all(
        product(device, backend, matrix, columns[:size], n, n_expert, apart=apart)
        == b"".join(alone[:size])
        for size in _SIZES
    )


def product(
    device: Device,
    backend: Backend,
    matrix: int,
    columns: np.ndarray,
    n: int,
    n_expert: int = 0,
    *,
    apart: bool = False,
) -> bytes:
    """The bytes of f32 [n, size] from a matrix [k, n] and columns [size][k].

    Of a stack of `n_expert` matrices, the first is taken for all columns. `apart`: each column
    is a matrix of its own to the library.
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
            result = graph.matmul(matrix, x if apart else graph.reshape(x, k, size))
        buffer.place(result, DeviceAddr(buffer.base + offset))
        graph.output(result)
        memory.allocate(graph)
        backend.compute(graph.pointer)
        buffer.pull(offset, out_nbytes)
        return bytes(buffer.stage[offset : offset + out_nbytes])
