"""Has a product of several columns the bits of several products? Asked of the library, not a table.

That decides whether prompts can be cut and packed in any way; for steps, `width_probe.py` asks more
closely. One tensor of each type and shape among the weights is multiplied with random columns, each
alone and in batches of several sizes; of a stack of experts, the first one.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np

from isthmus.device.base import Backend, Device
from isthmus.device.graph import Graph
from isthmus.device.graph_allocator import GraphAllocator
from isthmus.model.files.header import TensorInfo
from isthmus.model.files.weights import Weights
from isthmus.native._ggml import GgmlType
from isthmus.units import DeviceAddr, align_up

_SIZES = (2, 3, 4, 5, 8, 16, 32)
_N = max(_SIZES)
_ALIGNMENT = 256


@dataclass(frozen=True)
class Kind:
    """Matrices [k, n] of one type: single ones, or in stacks."""

    dtype: GgmlType
    k: int
    n: int
    n_expert: int = 0
    """Matrices in a stack, of which a column is multiplied with some; 0: there is no stack."""
    n_head: int = 0
    """Matrices in a stack of which each has columns of its own: see `Graph.matmul_heads`."""

    @property
    def n_in(self) -> int:
        """Elements of a column."""
        return self.k * max(1, self.n_head)

    @property
    def n_out(self) -> int:
        """Elements of its product."""
        return self.n * max(1, self.n_head)


def batches_exactly(
    device: Device, backend: Backend, weights: Weights, *, with_vectors: bool = False
) -> bool:
    """Whether each column of a product is the same to the bit, alone and in any batch."""
    return all(
        _is_exact(device, backend, tensor, kind)
        for kind, tensor in matrices_of(weights, with_vectors=with_vectors).items()
    )


def matrices_of(
    weights: Weights, *, with_routers: bool = False, with_vectors: bool = False
) -> dict[Kind, int]:
    """One matrix, or stack of matrices, of each type and shape.

    Routers are multiplied with several columns in a prefill only: see `Pass.route`. Vectors are
    matrices in an adapter of rank 1.
    """
    return {
        _kind(info, per_head=info.name in weights.per_head): tensor
        for info, tensor in ((info, weights.used(info.name)) for info in weights.multiplied)
        if (with_routers if info.name in weights.routers else with_vectors or len(info.shape) > 1)
    }


def _kind(info: TensorInfo, *, per_head: bool) -> Kind:
    k, n, *stacked = (*info.shape, 1) if len(info.shape) < 2 else info.shape
    count = stacked[0] if stacked else 0
    return Kind(info.dtype, k, n, *((0, count) if per_head else (count, 0)))


def _is_exact(device: Device, backend: Backend, matrix: int, kind: Kind) -> bool:
    columns = np.random.default_rng(0).standard_normal((_N, kind.n_in), dtype=np.float32)
    alone = [product(device, backend, matrix, kind, columns[i : i + 1]) for i in range(_N)]
    return all(
        product(device, backend, matrix, kind, columns[:size]) == b"".join(alone[:size])
        for size in _SIZES
    )


def product(
    device: Device,
    backend: Backend,
    matrix: int,
    kind: Kind,
    columns: np.ndarray,
) -> bytes:
    """The bytes of f32 [n_out, size] from a matrix and columns [size][n_in].

    Of a stack of experts, the first is taken for all columns.
    """
    size = len(columns)
    data = columns.tobytes() + bytes(4 * size)  # and the numbers of the experts: 0
    out_nbytes, offset = 4 * kind.n_out * size, align_up(len(data), _ALIGNMENT)
    with contextlib.ExitStack() as stack:
        buffer = stack.enter_context(device.allocate_inputs(offset + out_nbytes))
        memory = stack.enter_context(GraphAllocator(device.library, device.buffer_type))
        graph = stack.enter_context(Graph(device.library, 8))
        x = graph.tensor(GgmlType.F32, kind.k, max(1, kind.n_head), size)
        buffer.place(x, buffer.base)
        buffer.stage[: len(data)] = data
        buffer.push(0, len(data))
        if kind.n_expert:
            chosen = graph.tensor(GgmlType.I32, 1, size)
            buffer.place(chosen, DeviceAddr(buffer.base + columns.nbytes))
            result = graph.matmul_chosen(matrix, x, chosen)
        elif kind.n_head:
            result = graph.copied(graph.matmul_heads(matrix, x))
        else:
            result = graph.matmul(matrix, graph.reshape(x, kind.k, size))
        buffer.place(result, DeviceAddr(buffer.base + offset))
        graph.output(result)
        memory.allocate(graph)
        backend.compute(graph.pointer)
        buffer.pull(offset, out_nbytes)
        return bytes(buffer.stage[offset : offset + out_nbytes])
