"""Which rows of the KV cache a token sees: those up to its own, or the last of them only.

A model with a sliding window has two masks, since some of its layers see everything. The cache
keeps all rows for both; see docs/rationale.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isthmus.device.base import Device
from isthmus.device.buffer import InputBuffer
from isthmus.device.graph import Graph
from isthmus.native._ggml import GgmlType
from isthmus.units import DeviceAddr, align_up

MASKED = np.float16(-np.inf)
_ALIGNMENT = 256


class Mask:
    """A part of a graph's inputs, f16 [n_kv, n]: 0 where a token sees a row, else minus infinity.

    Where the device has memory of its own, a chunk's mask is cut there out of a `CausalPattern`:
    sending it anew for each chunk took a tenth of a prefill's time.
    """

    def __init__(
        self,
        device: Device,
        buffer: InputBuffer,
        offset: int,
        shape: tuple[int, int],
        window: int | None = None,
    ) -> None:
        """`shape` is the largest, [n_ctx, n]; a token sees `window` rows, its own among them."""
        self._buffer, self._offset, self._window = buffer, offset, window
        n_ctx, n = shape
        self._elements = np.frombuffer(buffer.stage, np.float16, n * n_ctx, offset)
        self._pattern: CausalPattern | None = None
        if n > 1 and device.has_own_memory:
            self._pattern = CausalPattern(device, n, n_ctx, window)

    def cut(self, graph: Graph, first: int, n_kv: int, n: int) -> GraphMask:
        """The mask as a graph reads it that computes `n` tokens from position `first` on."""
        if n == 1 or self._pattern is None:
            return self.written(graph, n_kv, n)
        place = self.written(graph, n_kv, n).tensor
        part = self._pattern.cut(graph, first, n_kv, n)
        tensor = graph.copy_into(part, place)
        graph.expand(tensor)
        return GraphMask(tensor, place, part, self._pattern)

    def written(self, graph: Graph, n_kv: int, n: int) -> GraphMask:
        """The mask of `n` tokens that is sent anew for the graph, by `write_whole`."""
        place = graph.tensor(GgmlType.F16, n_kv, n)
        self._buffer.place(place, DeviceAddr(self._buffer.base + self._offset))
        return GraphMask(place)

    def write(self, first: int, n_kv: int, n: int) -> None:
        """Lets each of `n` tokens see what it may."""
        if n > 1 and self._pattern is not None:
            return  # the graph cuts it out itself
        self.write_whole(first, n_kv, n, causal=True)

    def write_whole(self, first: int, n_kv: int, n: int, *, causal: bool) -> None:
        """As `write`; unless `causal`, each of the tokens sees those after it as well."""
        mask = self._elements[: n * n_kv].reshape(n, n_kv)
        show(mask, first, self._window)
        if not causal:
            mask[:, first : first + n][np.tri(n, k=-1, dtype=bool).T] = 0
        self._push(0, n * n_kv)

    def extend(self, position: int) -> None:
        """Moves a single token's mask by one row: all that changes from token to token."""
        self._elements[position] = 0
        self._push(position, 1)
        if self._window is not None and position >= self._window:
            self._elements[position - self._window] = MASKED
            self._push(position - self._window, 1)

    def close(self) -> None:
        """Frees what is the mask's own; the inputs are not."""
        if self._pattern is not None:
            self._pattern.close()

    def _push(self, first: int, n_elements: int) -> None:
        if not self._buffer.is_host:
            self._buffer.push(self._offset + 2 * first, 2 * n_elements)


@dataclass(frozen=True)
class GraphMask:
    """A mask's tensors in one graph: `tensor` is what attention reads."""

    tensor: int
    place: int = 0
    """Where `part` is copied to, 0 where nothing is."""
    part: int = 0
    pattern: CausalPattern | None = None

    def move(self, graph: Graph, first: int, n_kv: int) -> None:
        """Makes it that of the tokens from position `first` on, over `n_kv` rows."""
        for each in (self.tensor, self.place) if self.place else (self.tensor,):
            struct = graph.describe(each)
            struct.ne[0] = n_kv
            n = struct.ne[1]
            struct.nb[1], struct.nb[2], struct.nb[3] = 2 * n_kv, 2 * n_kv * n, 2 * n_kv * n
        if self.pattern is not None:
            struct = graph.describe(self.part)
            struct.ne[0] = n_kv
            struct.view_offs = self.pattern.offset(first)
            struct.data = self.pattern.buffer.base + struct.view_offs


class CausalPattern:
    """Owns a matrix in device memory, every chunk's mask being a part of it.

    Row i is 0 up to column `origin` + i, with a window from `window` - 1 columns before that on,
    and minus infinity elsewhere. The part that begins at column `origin` - first lets token i of a
    chunk see the rows up to first + i.
    """

    def __init__(self, device: Device, n_tokens: int, n_ctx: int, window: int | None) -> None:
        self.origin = n_ctx
        self.width = align_up(n_ctx + n_tokens, _ALIGNMENT) + _ALIGNMENT  # n_kv is rounded up
        self._shape = (self.width, n_tokens)
        self.buffer = device.allocate_inputs(2 * self.width * n_tokens)
        rows = np.frombuffer(self.buffer.stage, np.float16).reshape(n_tokens, self.width)
        show(rows, self.origin, window)
        self.buffer.push(0, rows.nbytes)

    def cut(self, graph: Graph, first: int, n_kv: int, n: int) -> int:
        """f16 [n_kv, n]: the mask of `n` tokens from position `first` on."""
        whole = graph.tensor(GgmlType.F16, *self._shape)
        self.buffer.place(whole, self.buffer.base)
        return graph.view_2d(whole, (n_kv, n), 2 * self.width, self.offset(first))

    def offset(self, first: int) -> int:
        """Where the part for tokens from position `first` on begins, in bytes."""
        return 2 * (self.origin - first)

    def close(self) -> None:
        """Frees the memory."""
        self.buffer.close()


def show(mask: np.ndarray, first: int, window: int | None) -> None:
    """Writes f16 [n_kv, n]: what tokens from position `first` on see, each up to its own row."""
    mask[:] = MASKED
    for row, position in zip(mask, range(first, first + len(mask)), strict=True):
        row[first_seen(position, window) : position + 1] = 0


def first_seen(position: int, window: int | None) -> int:
    """The first row that the token at a position sees."""
    return 0 if window is None else max(0, position - window + 1)
