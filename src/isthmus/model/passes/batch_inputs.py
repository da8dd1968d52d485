"""What a batch's kernels compute with: addresses and results outside of any guest's memory."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from isthmus.device.base import Device
from isthmus.device.buffer import Buffer
from isthmus.device.graph import Graph
from isthmus.model.hparams import Hparams
from isthmus.model.own.kv_cache import KvLayout
from isthmus.model.passes.mask import MASKED
from isthmus.native import _ggml
from isthmus.native._ggml import GgmlType, Tensor
from isthmus.units import DeviceAddr, align_up

_ALIGNMENT = 256
SEEN = 5
"""Index of attention's results among the inputs."""
IDLE = 7
"""Index of what rows of nobody write: a row of a cache, and behind it logits and a state."""


class Leaves:
    """Tensors of one graph whose places are written all at once: `data`, `ne` and `nb` are theirs.

    They follow each other in the graph's memory at equal distances, so arrays can cover them.
    """

    def __init__(self, graph: Graph, everywhere: Buffer, n: int, dtype: GgmlType, *ne: int) -> None:
        self.tensors = [graph.tensor(dtype, *ne) for _ in range(n)]
        stride = _ggml.TENSOR_OVERHEAD
        assert all(b - a == stride for a, b in zip(self.tensors, self.tensors[1:], strict=False))
        raw = memoryview((ctypes.c_ubyte * (stride * n)).from_address(self.tensors[0])).cast("B")

        def field(name: str, dtype: type, count: int) -> np.ndarray:
            place = getattr(Tensor, name).offset
            return np.ndarray((n, count), dtype, raw, place, (stride, 8))

        self.ne: npt.NDArray[np.int64] = field("ne", np.int64, 4)
        self.nb: npt.NDArray[np.uint64] = field("nb", np.uint64, 4)
        self.data: npt.NDArray[np.uint64] = field("data", np.uint64, 1)[:, 0]
        field("buffer", np.uint64, 1)[:, 0] = everywhere.handle


def set_data(tensors: Sequence[int], data: npt.NDArray[np.uint64]) -> None:
    """Writes the places of tensors that lie anywhere in one graph's memory."""
    fields = np.array(tensors, np.int64) + Tensor.data.offset
    first, last = int(fields.min()), int(fields.max())
    room = (ctypes.c_uint64 * ((last - first) // 8 + 1)).from_address(first)
    np.ctypeslib.as_array(room)[(fields - first) // 8] = data


class BatchInputs:
    """Owns the memory that a batch's kernels use for addresses and results; see the module."""

    def __init__(self, device: Device, h: Hparams, n: int, n_ctx: int, layout: KvLayout) -> None:
        """For `n` rows of sessions with up to `n_ctx` cache rows."""
        n_planes, n_vocab = len(layout.row_nbytes), layout.n_vocab
        self._row_nbytes = align_up(max(layout.row_nbytes), _ALIGNMENT)
        self._idle_nbytes = self._row_nbytes + align_up(4 * n_vocab, _ALIGNMENT)
        largest = max((it.nbytes for it in h.states), default=0)
        written = (4 * n * h.n_embd_seen, 4 * n * n_vocab, self._idle_nbytes + largest)
        self.windows = [None, h.window_tokens] if h.window else [None]
        """Rows that a token sees by each mask, its own included; None for all before it."""
        masks = (len(self.windows), n, n_ctx)
        sizes = (4 * n, 4 * n, 8 * n_planes * n, 8 * n, 2 * math.prod(masks), *written)
        self.offsets = [0]
        for size in sizes:
            self.offsets.append(align_up(self.offsets[-1] + size, _ALIGNMENT))
        self.n_ctx = n_ctx
        self.buffer = device.allocate_inputs(self.offsets[-1], often=True)
        self.buffer.clear()  # of rows of nobody, attention writes nothing
        self.tokens = self._array(np.int32, 0, n)
        self.positions = self._array(np.int32, 1, n)
        self.cache_rows = self._array(np.int64, 2, n_planes * n).reshape(n_planes, n)
        self.logits_rows = self._array(np.int64, 3, n)
        self.masks = self._array(np.float16, 4, math.prod(masks)).reshape(masks)
        """f16 [windows, n, n_ctx]"""
        self.masks[:] = MASKED

    def _array(self, dtype: type, index: int, count: int) -> np.ndarray:
        return np.frombuffer(self.buffer.stage, dtype, count, self.offsets[index])

    def address(self, index: int, offset: int = 0) -> DeviceAddr:
        """Where input number `index` lies."""
        return DeviceAddr(self.buffer.base + self.offsets[index] + offset)

    @property
    def idle_cache_row(self) -> DeviceAddr:
        """Where rows of nobody write keys and values."""
        return self.address(IDLE)

    @property
    def idle_logits(self) -> DeviceAddr:
        """Where they write logits."""
        return self.address(IDLE, self._row_nbytes)

    @property
    def idle_state(self) -> DeviceAddr:
        """Where they have their states, all in one place."""
        return self.address(IDLE, self._idle_nbytes)

    def place(self, graph: Graph, dtype: GgmlType, ne: tuple[int, ...], at: DeviceAddr) -> int:
        """A tensor of `graph` at an address of these."""
        tensor = graph.tensor(dtype, *ne)
        self.buffer.place(tensor, at)
        return tensor

    def push(self) -> None:
        """Sends all that the host writes, which lies in front of what kernels write."""
        if not self.buffer.is_host:
            self.buffer.push(0, self.offsets[SEEN])

    def close(self) -> None:
        """Frees the memory."""
        self.buffer.close()
