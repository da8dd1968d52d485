"""A forward pass as architectures write it down.

A `Pass` is a graph that knows its inputs and where the KV cache lies: an architecture says only
*what* is computed, not *where*. A `Forward` is one over several tokens of a session, a
`Batch` (batch.py) one over a token each of several sessions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from isthmus.device.base import Device
from isthmus.device.graph import Graph
from isthmus.model.hparams import Hparams
from isthmus.model.session import Session
from isthmus.native._ggml import GgmlType
from isthmus.native.loader import Library
from isthmus.units import DeviceAddr, align_up

_ROPE_NORMAL = 0
_ALIGNMENT = 256
_MASKED = np.float16(-np.inf)
_MASK = 4
"""The mask's number among the inputs."""


class Inputs:
    """Owns device memory for the inputs of graphs of up to `n_tokens` tokens and `n_ctx` rows.

    ::

        tokens i32 [n] │ positions i32 [n] │ rows i64 [n] │ output i32 [1] │ mask f16 [n_kv, n]

    No guest can reach these bytes: kernels use them as addresses.

    Where the device has memory of its own, a chunk's mask is cut there out of a `CausalPattern`:
    sending it anew for each chunk took a tenth of a prefill's time.
    """

    def __init__(self, device: Device, n_tokens: int, n_ctx: int) -> None:
        self.n_tokens = n_tokens
        self.n_ctx = n_ctx
        sizes = (4 * n_tokens, 4 * n_tokens, 8 * n_tokens, 4, 2 * n_tokens * n_ctx)
        self.offsets = [0]
        for size in sizes:
            self.offsets.append(align_up(self.offsets[-1] + size, _ALIGNMENT))
        self.buffer = device.allocate_inputs(self.offsets[-1])
        self.tokens = self._array(np.int32, 0, n_tokens)
        self.positions = self._array(np.int32, 1, n_tokens)
        self.rows = self._array(np.int64, 2, n_tokens)
        self.output = self._array(np.int32, 3, 1)
        self.mask = self._array(np.float16, _MASK, n_tokens * n_ctx)
        self.pattern: CausalPattern | None = None
        if n_tokens > 1 and device.has_own_memory:
            self.pattern = CausalPattern(device, n_tokens, n_ctx)

    def _array(self, dtype: type, index: int, count: int) -> np.ndarray:
        return np.frombuffer(self.buffer.stage, dtype, count, self.offsets[index])

    def place(self, graph: Graph, index: int, dtype: GgmlType, *ne: int) -> int:
        """A tensor of `graph` over input number `index`."""
        tensor = graph.tensor(dtype, *ne)
        self.buffer.place(tensor, DeviceAddr(self.buffer.base + self.offsets[index]))
        return tensor

    def push(self, first: int, end: int, nbytes: int = 0) -> None:
        """Sends inputs number `first` to before `end`, and `nbytes` more, in one go."""
        if not self.buffer.is_host:
            begin = self.offsets[first]
            self.buffer.push(begin, self.offsets[end] - begin + nbytes)

    def push_mask_element(self, position: int) -> None:
        """Sends one element of the mask; for a single token."""
        if not self.buffer.is_host:
            self.buffer.push(self.offsets[_MASK] + 2 * position, 2)

    def close(self) -> None:
        """Frees the memory."""
        if self.pattern is not None:
            self.pattern.close()
        self.buffer.close()


class CausalPattern:
    """Owns a matrix in device memory, every chunk's mask being a part of it.

    Row i is 0 up to column `origin` + i, and minus infinity behind it. The part that begins at
    column `origin` - first lets token i of a chunk see the rows up to first + i.
    """

    def __init__(self, device: Device, n_tokens: int, n_ctx: int) -> None:
        self.origin = n_ctx
        self.width = align_up(n_ctx + n_tokens, _ALIGNMENT) + _ALIGNMENT  # n_kv is rounded up
        self._shape = (self.width, n_tokens)
        self.buffer = device.allocate_inputs(2 * self.width * n_tokens)
        rows = np.frombuffer(self.buffer.stage, np.float16).reshape(n_tokens, self.width)
        columns = np.arange(self.width)
        for i in range(n_tokens):
            rows[i] = np.where(columns <= self.origin + i, np.float16(0), _MASKED)
        self.buffer.push(0, rows.nbytes)

    def cut(self, graph: Graph, first: int, n_kv: int, n: int) -> int:
        """f16 [n_kv, n]: the mask of `n` tokens from position `first` on."""
        whole = graph.tensor(GgmlType.F16, *self._shape)
        self.buffer.place(whole, self.buffer.base)
        return graph.view_2d(whole, (n_kv, n), 2 * self.width, 2 * (self.origin - first))

    def close(self) -> None:
        """Frees the memory."""
        self.buffer.close()


class Pass(Graph, ABC):
    """A forward pass over `n` tokens, whose `tokens` and `positions` are i32 [n]."""

    tokens: int
    positions: int

    def __init__(
        self, library: Library, hparams: Hparams, n: int, n_ctx: int, max_nodes: int
    ) -> None:
        super().__init__(library, max_nodes)
        self.hparams = hparams
        self.n, self.n_ctx = n, n_ctx

    # ------------------------------------------------------------------ parts of a model

    def norm(self, x: int, weight: int) -> int:
        """RMS norm with a gain."""
        return self.mul(self.rms_norm(x, self.hparams.rms_epsilon), weight)

    def linear(self, weight: int, x: int, bias: int = 0) -> int:
        """weight · x + bias."""
        result = self.matmul(weight, x)
        return self.add(result, bias) if bias else result

    def heads(self, x: int, n_head: int) -> int:
        """[head_dim, n_head, n] from [head_dim * n_head, n]."""
        return self.reshape(x, self.hparams.head_dim, n_head, self.n)

    def heads_at(self, x: int, n_head: int, first: int) -> int:
        """As `heads`, of the rows from `first` on in a fused product (F32)."""
        head, width = 4 * self.hparams.head_dim, self.describe(x).nb[1]
        shape = (self.hparams.head_dim, n_head, self.n)
        return self.view_3d(x, shape, (head, width), 4 * first)

    def rows_at(self, x: int, n_rows: int, first: int) -> int:
        """[n_rows, n]: the rows from `first` on in a fused product (F32)."""
        return self.view_2d(x, (n_rows, self.n), self.describe(x).nb[1], 4 * first)

    def rope(self, x: int, factors: int) -> int:
        """x with its positions rotated in; `factors` divide the frequencies, 0 for none."""
        r = self.hparams.rope
        return int(
            self.library.ggml_rope_ext(
                self._context, x, self.positions, factors, r.n_dims, _ROPE_NORMAL,
                r.n_ctx_original, r.freq_base, r.freq_scale, r.ext_factor, r.attn_factor,
                r.beta_fast, r.beta_slow,
            )
        )  # fmt: skip

    @abstractmethod
    def attend(self, layer: int, q: int, k: int, v: int) -> int:
        """Writes k and v to the cache, then attention of q over it: [n_embd_q, n].

        q is [head_dim, n_head, n], k [head_dim, n_head_kv, n], v [n_embd_kv, n].
        """

    @abstractmethod
    def select_outputs(self, x: int) -> int:
        """Only the columns of x after which somebody asks for logits."""


class Forward(Pass):
    """A pass over the next `n` tokens of one session, which sees the first `n_kv` cache rows."""

    def __init__(self, session: Session, inputs: Inputs, n: int, n_kv: int) -> None:
        h = session.model.hparams
        library = session.model.device.library
        super().__init__(library, h, n, session.n_ctx, 40 * h.n_layer + 64)
        self.session = session
        self.n_kv = n_kv
        self._inputs = inputs
        self.tokens = inputs.place(self, 0, GgmlType.I32, n)
        self.positions = inputs.place(self, 1, GgmlType.I32, n)
        self.rows = inputs.place(self, 2, GgmlType.I64, n)
        self.mask = inputs.place(self, _MASK, GgmlType.F16, n_kv, n)
        if n > 1 and inputs.pattern is not None:
            part = inputs.pattern.cut(self, session.n_tokens, n_kv, n)
            self.mask = self.copy_into(part, self.mask)
            self.expand(self.mask)
        self._last = inputs.place(self, 3, GgmlType.I32, 1) if n > 1 else 0
        self.cuts: list[int] = []
        """Where attention of each layer begins, in nodes: a prefill is computed in such parts."""
        self.stamp: tuple[int, int] = (-1, -1)
        """The executor's: whether the memory it was placed in is still there."""

    def attend(self, layer: int, q: int, k: int, v: int) -> int:
        h, cache = self.hparams, self.session.cache
        self.cuts.append(self.n_nodes)
        for tensor in (q, v, k):
            self.expand(tensor)
        keys = self.reshape(k, h.n_embd_kv, self.n)
        self.expand(self.set_rows(cache.k[layer], keys, self.rows))
        self.expand(self.set_rows(cache.v[layer], v, self.rows))
        seen = self.flash_attention(
            self.swap_1_2(q),
            self._cached_heads(cache.k[layer]),
            self._cached_heads(cache.v[layer]),
            self.mask,
            h.kq_scale,
        )
        return self.reshape(seen, h.n_embd_q, self.n)

    def select_outputs(self, x: int) -> int:
        return self.get_rows(x, self._last) if self._last else x

    # ------------------------------------------------------------------ inputs and output

    def place_logits(self, logits: int) -> None:
        """Makes the last product write straight into the session's logits in the guest's memory."""
        self.session.binding.place(logits, self.session.base)
        self.output(logits)

    def write_tokens(self, tokens: np.ndarray, first: int) -> None:
        """Sets ids, positions and cache rows of the `n` tokens from position `first` on."""
        inputs, n = self._inputs, self.n
        inputs.tokens[:n] = tokens
        inputs.positions[:n] = np.arange(first, first + n, dtype=np.int32)
        inputs.rows[:n] = np.arange(first, first + n, dtype=np.int64)
        inputs.output[0] = n - 1
        inputs.push(0, _MASK)

    def write_token(self, token: int, position: int) -> None:
        """As `write_tokens` for one token, without making arrays."""
        inputs = self._inputs
        inputs.tokens[0] = token
        inputs.positions[0] = position
        inputs.rows[0] = position
        inputs.push(0, _MASK)

    def write_mask(self, first: int) -> None:
        """Lets each token see the cache rows up to its own."""
        if self.n > 1 and self._inputs.pattern is not None:
            return  # the graph cuts it out itself
        mask = self._inputs.mask[: self.n * self.n_kv].reshape(self.n, self.n_kv)
        mask[:] = _MASKED
        mask[:, : first + 1] = 0
        for row in range(1, self.n):
            mask[row, first + 1 : first + row + 1] = 0
        self._inputs.push(_MASK, _MASK, mask.nbytes)

    def extend_mask(self, position: int) -> None:
        """Lets a single token see one more row: all that changes from token to token."""
        self._inputs.mask[position] = 0
        self._inputs.push_mask_element(position)

    def _cached_heads(self, cache: int) -> int:
        """[head_dim, n_kv, n_head_kv]: the cache as attention wants it; no element moves."""
        h, strides = self.hparams, self.describe(cache).nb
        head_nbytes = self.library.ggml_row_size(self.session.layout.dtype, h.head_dim)
        shape = (h.head_dim, self.n_kv, h.n_head_kv)
        return self.view_3d(cache, shape, (strides[1], head_nbytes), 0)
