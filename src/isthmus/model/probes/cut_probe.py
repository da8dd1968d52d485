"""Has a prompt the same bits wherever it is cut into chunks? Asked of the library, not a table.

Most kernels treat a chunk's tokens one by one. Two may not: products with the weights, which the
batch probe asks about as well, and attention, for which there are kernels for a single token, for
some and for many, each adding in its own order. Here those for some are asked, `MAX_CHUNK` at most.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from isthmus.device.base import Backend, Device
from isthmus.device.graph import Graph
from isthmus.device.graph_allocator import GraphAllocator
from isthmus.model.files.weights import Weights
from isthmus.model.probes.attention_probe import Kernel
from isthmus.model.probes.batch_probe import Kind, batches_exactly, matrices_of, product
from isthmus.native._ggml import GgmlType
from isthmus.units import DeviceAddr, align_up

MAX_CHUNK = 63
"""Tokens in a chunk: ggml's processor kernels for many begin at 64."""
_CUTS = ((31, 32), (2, 61), (60, 3))
_N_KV = 512
_ALIGNMENT = 256
_MASKED = np.float16(-np.inf)


def cuts_exactly(
    device: Device, backend: Backend, weights: Weights, kernels: Sequence[Kernel]
) -> bool:
    """Whether chunks of 2 to `MAX_CHUNK` tokens have the same bits as others that cover them.

    For a model whose products of up to 32 columns have the bits of single ones. `kernels` are all
    that its attention has.
    """
    return all(
        _Attention(device, backend, kernel).is_exact() for kernel in kernels
    ) and _all_multiply_exactly(device, backend, weights)


def adapter_cuts_exactly(device: Device, backend: Backend, adapter: Weights) -> bool:
    """The same of an adapter's matrices, of whose products the batch probe asks otherwise."""
    return batches_exactly(device, backend, adapter, with_vectors=True) and _all_multiply_exactly(
        device, backend, adapter, with_vectors=True
    )


def _all_multiply_exactly(
    device: Device, backend: Backend, weights: Weights, *, with_vectors: bool = False
) -> bool:
    matrices = matrices_of(weights, with_routers=True, with_vectors=with_vectors)
    return all(
        _multiplies_exactly(device, backend, tensor, kind) for kind, tensor in matrices.items()
    )


def _multiplies_exactly(device: Device, backend: Backend, matrix: int, kind: Kind) -> bool:
    columns = np.random.default_rng(0).standard_normal((MAX_CHUNK, kind.n_in), dtype=np.float32)
    first, last = np.split(columns, [32])
    parts = (product(device, backend, matrix, kind, part) for part in (first, last))
    return product(device, backend, matrix, kind, columns) == b"".join(parts)


@dataclass(frozen=True)
class _Attention:
    """Attention as `Forward.attend` computes it, over random numbers."""

    device: Device
    backend: Backend
    kernel: Kernel

    def is_exact(self) -> bool:
        """Whether each query has the same bits among any number of others."""
        heads, random = self.kernel.heads, np.random.default_rng(0)
        queries = random.standard_normal((MAX_CHUNK, heads.n, heads.dim), dtype=np.float32)
        keys, values = (
            random.standard_normal((_N_KV, width), dtype=np.float32) for width in self.kernel.widths
        )
        seen = np.arange(_N_KV) <= _N_KV - MAX_CHUNK + np.arange(MAX_CHUNK)[:, np.newaxis]
        mask = np.where(seen, np.float16(0), _MASKED)
        whole = self._compute(queries, keys, values, mask)
        return all(
            whole
            == b"".join(
                self._compute(queries[begin:end], keys, values, mask[begin:end])
                for begin, end in pairwise(accumulate(cut, initial=0))
            )
            for cut in _CUTS
        )

    def _compute(self, *arrays: np.ndarray) -> bytes:
        """From queries [n, n_head, dim], keys, values and mask: the bytes of as many rows."""
        n, heads, scores = len(arrays[0]), self.kernel.heads, self.kernel.scores
        nbytes = 4 * n * heads.n_embd_seen
        sizes = (align_up(array.nbytes, _ALIGNMENT) for array in arrays)
        offsets = list(accumulate(sizes, initial=0))
        with contextlib.ExitStack() as stack:
            buffer = stack.enter_context(self.device.allocate_inputs(offsets[-1] + nbytes))
            memory = stack.enter_context(
                GraphAllocator(self.device.library, self.device.buffer_type)
            )
            graph = stack.enter_context(Graph(self.device.library, 16))
            q = graph.tensor(GgmlType.F32, heads.dim, heads.n, n)
            planes = [graph.tensor(GgmlType.F32, it, _N_KV) for it in self.kernel.widths]
            mask = graph.tensor(GgmlType.F16, _N_KV, n)
            keys, values = (
                self._cached(graph, planes[plane], dim) for plane, dim in self.kernel.planes
            )
            result = graph.flash_attention(
                graph.swap_1_2(q),
                keys,
                values,
                mask,
                scores.scale,
                scores.soft_cap,
                scores.sinks,
            )
            for tensor, offset in zip((q, *planes, mask, result), offsets, strict=True):
                buffer.place(tensor, DeviceAddr(buffer.base + offset))
            for array, offset in zip(arrays, offsets, strict=False):
                buffer.stage[offset : offset + array.nbytes] = array.tobytes()
            buffer.push(0, offsets[-1])
            graph.output(result)
            memory.allocate(graph)
            self.backend.compute(graph.pointer)
            buffer.pull(offsets[-1], nbytes)
            return bytes(buffer.stage[offsets[-1] : offsets[-1] + nbytes])

    def _cached(self, graph: Graph, rows: int, dim: int) -> int:
        """[dim, n_kv, n_head_kv] of f32 [width, n_kv], as it would lie in a KV cache."""
        kind, size = self.kernel.kv_type, self.device.library.ggml_row_size
        cache = graph.cast(rows, kind)
        strides = (graph.describe(cache).nb[1], size(kind, dim))
        return graph.view_3d(cache, (dim, _N_KV, self.kernel.heads.n_kv), strides, 0)
