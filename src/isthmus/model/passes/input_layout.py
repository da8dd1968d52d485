"""What a pass computes from: a declared list of inputs, each with its place in one buffer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from isthmus.device.buffer import InputBuffer
from isthmus.device.graph import Graph
from isthmus.native._ggml import GgmlType
from isthmus.units import DeviceAddr, align_up

_ALIGNMENT = 256
_DTYPES: dict[GgmlType, type[np.generic]] = {
    GgmlType.I32: np.int32,
    GgmlType.I64: np.int64,
    GgmlType.F16: np.float16,
    GgmlType.F32: np.float32,
}


@dataclass(frozen=True, slots=True)
class Input:
    """One array that kernels read, or write for others to read."""

    name: str
    dtype: GgmlType
    shape: tuple[int, ...]
    """As numpy has it: rows first."""

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return np.dtype(_DTYPES[self.dtype]).itemsize * math.prod(self.shape)


class InputLayout:
    """Inputs one behind the other, each at a multiple of 256 bytes."""

    def __init__(self, *inputs: Input) -> None:
        sizes = [align_up(it.nbytes, _ALIGNMENT) for it in inputs]
        self.nbytes = sum(sizes)
        """All of them."""
        self._inputs = {it.name: it for it in inputs}
        self._offsets = dict(zip(self._inputs, accumulate(sizes, initial=0), strict=False))

    def offset(self, name: str) -> int:
        """Where an input begins, in bytes."""
        return self._offsets[name]

    def array(self, buffer: InputBuffer, name: str) -> npt.NDArray[Any]:
        """An input as the host writes it, in its dtype and shape."""
        it = self._inputs[name]
        dtype, count = _DTYPES[it.dtype], math.prod(it.shape)
        array = np.frombuffer(buffer.stage, dtype, count, self._offsets[name])
        return array.reshape(it.shape)

    def address(self, buffer: InputBuffer, name: str, offset: int = 0) -> DeviceAddr:
        """Where the device has an input, or a byte of it."""
        return DeviceAddr(buffer.base + self._offsets[name] + offset)

    def place(self, graph: Graph, buffer: InputBuffer, name: str, *ne: int, offset: int = 0) -> int:
        """A tensor of `graph` over an input, or over a part of it from a byte on."""
        tensor = graph.tensor(self._inputs[name].dtype, *ne)
        buffer.place(tensor, self.address(buffer, name, offset))
        return tensor
