"""What a batch's kernels compute with: addresses and results outside of any guest's memory."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from isthmus.device.base import Device
from isthmus.device.buffer import Buffer
from isthmus.device.graph import Graph
from isthmus.model.own.kv_cache import KvLayout
from isthmus.model.passes.input_layout import Input, InputLayout
from isthmus.model.passes.mask import MASKED
from isthmus.model.shape.hparams import Hparams
from isthmus.native import _ggml
from isthmus.native._ggml import GgmlType, Tensor
from isthmus.units import DeviceAddr, align_up

_ALIGNMENT = 256


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

    def __init__(
        self, device: Device, h: Hparams, n: int, n_ctx: int, kv: KvLayout, unseen: int
    ) -> None:
        """For `n` rows of sessions with up to `n_ctx` cache rows, and for masks and results of
        `unseen` further sequences."""
        self.windows = [None, h.window_tokens] if h.window else [None]
        """Rows that a token sees by each mask, its own included; None for all before it."""
        idle_row = align_up(max(kv.row_nbytes), _ALIGNMENT) // 4
        idle_state = max((it.nbytes for it in h.states), default=4) // 4
        layout = self._layout = InputLayout(
            Input("tokens", GgmlType.I32, (n,)),
            Input("positions", GgmlType.I32, (n,)),
            Input("cache rows", GgmlType.I64, (len(kv.row_nbytes), n)),
            Input("logits rows", GgmlType.I64, (n,)),
            Input("masks", GgmlType.F16, (len(self.windows), n + unseen, n_ctx)),
            Input("seen", GgmlType.F32, (n + unseen, h.n_embd_seen)),
            Input("idle cache row", GgmlType.F32, (idle_row,)),
            Input("idle state", GgmlType.F32, (idle_state,)),
            Input("logits", GgmlType.F32, (n, kv.n_vocab)),
            Input("idle logits", GgmlType.F32, (kv.n_vocab,)),
        )
        self.n_ctx = n_ctx
        buffer = self.buffer = device.allocate_inputs(layout.nbytes, often=True)
        buffer.zero(layout.offset("seen"), layout.offset("logits"))
        # since attention writes nothing of rows of nobody; logits take longer than all else to zero
        self.tokens = layout.array(buffer, "tokens")
        self.positions = layout.array(buffer, "positions")
        self.cache_rows = layout.array(buffer, "cache rows")
        """i64 [planes, n]"""
        self.logits_rows = layout.array(buffer, "logits rows")
        self.masks = layout.array(buffer, "masks")
        """f16 [windows, n + unseen, n_ctx]"""
        self.masks[:] = MASKED

    def address(self, name: str, offset: int = 0) -> DeviceAddr:
        """Where an input lies, or a byte of it."""
        return self._layout.address(self.buffer, name, offset)

    @property
    def idle_cache_row(self) -> DeviceAddr:
        """Where rows of nobody write keys and values."""
        return self.address("idle cache row")

    @property
    def idle_logits(self) -> DeviceAddr:
        """Where they write logits."""
        return self.address("idle logits")

    @property
    def idle_state(self) -> DeviceAddr:
        """Where they have their states, all in one place."""
        return self.address("idle state")

    def place(self, graph: Graph, name: str, *ne: int, offset: int = 0) -> int:
        """A tensor of `graph` over an input, or over a part of it from a byte on."""
        return self._layout.place(graph, self.buffer, name, *ne, offset=offset)

    def push(self) -> None:
        """Sends all that the host writes, which lies in front of what kernels write."""
        if not self.buffer.is_host:
            self.buffer.push(0, self._layout.offset("seen"))

    def close(self) -> None:
        """Frees the memory."""
        self.buffer.close()
