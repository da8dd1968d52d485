"""A pass over a whole text at once, without a cache: from token ids to an embedding.

Nothing of it stays: keys and values live as long as the pass. An encoder's tokens see all others,
a decoder's those before them; both by the parts that the architecture is made of.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from isthmus.device.base import Device
from isthmus.device.buffer import InputBuffer
from isthmus.model.architectures import Architecture
from isthmus.model.passes.forward import Pass, Scores
from isthmus.model.passes.input_layout import Input, InputLayout
from isthmus.model.passes.mask import show
from isthmus.model.shape.hparams import Hparams, Pooling
from isthmus.native._ggml import GgmlType

_MIN_LENGTH = 1e-12
"""Of an embedding that is divided by its length."""


class EncodingLayout(InputLayout):
    """The inputs of a pass over `n` tokens; see `Encoding`.

    ::

        tokens i32 [n] │ positions i32 [n] │ row i32 [1] │ shares f32 [n] │ masks f16 [n, n]
    """

    def __init__(self, hparams: Hparams, n: int) -> None:
        windows = () if hparams.encoder else (None, hparams.window_tokens)
        self.windows = windows[: 2 if hparams.window else 1]
        super().__init__(
            Input("tokens", GgmlType.I32, (n,)),
            Input("positions", GgmlType.I32, (n,)),
            Input("row", GgmlType.I32, (1,)),
            Input("shares", GgmlType.F32, (n,)),
            *(Input(f"mask {window}", GgmlType.F16, (n, n)) for window in self.windows),
        )


class Encoding(Pass):
    """The graph of one text, and what it computes from; used once.

    `inputs` has at least `EncodingLayout.nbytes` bytes, which no guest can reach. `flash`:
    attention is one operation, as on the processor and as in libllama; not all devices have it for
    small heads.
    """

    def __init__(
        self,
        device: Device,
        hparams: Hparams,
        tokens: Sequence[int],
        inputs: InputBuffer,
        *,
        flash: bool = True,
    ) -> None:
        h, n = hparams, len(tokens)
        super().__init__(device.library, h, n, n, h.nodes_per_layer * h.n_layer + 64)
        self._layout, self._inputs = EncodingLayout(h, n), inputs
        self._flash = flash
        self._planes: dict[int, int] = {}
        """What would lie in a KV cache, by plane: keys or values, f32 [width, n]."""
        self.tokens = self._place("tokens", n)
        self.positions = self._place("positions", n)
        self._row = self._place("row", 1)
        self._shares = self._place("shares", n, 1)
        self._masks = [self._place(f"mask {window}", n, n) for window in self._layout.windows]
        self._write(np.asarray(tokens, dtype=np.int32))

    def embedding(self, architecture: Architecture, normalised: bool) -> int:
        """f32 [n_embd, 1], or [n_embd, n] where nothing is pooled; a reranker's [n_scores, 1]."""
        x = self._pooled(architecture.hidden(self))
        x = architecture.rank(self, x) if architecture.rank else x
        return self.l2_norm(x, _MIN_LENGTH) if normalised else x

    def attend(self, q: int, k: int, v: int, scores: Scores) -> int:
        heads = scores.heads
        self.cuts.append(self.n_nodes)
        for tensor in filter(None, (q, k, v)):
            self.expand(tensor)
        self._planes |= dict(self.written(heads, k, v))
        q = self.swap_1_2(q)
        k = self._heads_of(heads.keys, heads.dim, heads.n_kv)
        v = self._heads_of(heads.values, heads.value_dim, heads.n_kv)
        mask = self._masks[scores.windowed] if self._masks else 0
        if self._flash or scores.soft_cap or scores.sinks:
            k, v = self.cast(k, GgmlType.F16), self.cast(v, GgmlType.F16)
            seen = self.flash_attention(q, k, v, mask, scores.scale, scores.soft_cap, scores.sinks)
        else:
            seen = self.plain_attention(q, k, v, mask, scores.scale)
        return self.reshape(seen, heads.n_embd_seen, self.n)

    def select_outputs(self, x: int) -> int:
        return x  # of all, and pooled behind the last norm, as libllama does

    def _heads_of(self, plane: int, dim: int, n_head: int) -> int:
        """[dim, n, n_head] of what a layer wrote, or one before it."""
        return self.swap_1_2(self.heads_at(self._planes[plane], n_head, dim, 0))

    def _pooled(self, x: int) -> int:
        if self.hparams.pooling is Pooling.MEAN:
            return self.matmul(self.copied(self.transpose(x)), self._shares)
        if self.hparams.pooling in (Pooling.CLS, Pooling.LAST, Pooling.RANK):
            return self.get_rows(x, self._row)
        return x

    def _place(self, name: str, *ne: int) -> int:
        return self._layout.place(self, self._inputs, name, *ne)

    def _write(self, tokens: np.ndarray) -> None:
        n = self.n
        self._input("tokens")[:] = tokens
        self._input("positions")[:] = np.arange(n, dtype=np.int32)
        pooling, encoder = self.hparams.pooling, self.hparams.encoder
        last = pooling is Pooling.LAST or (pooling is Pooling.RANK and not encoder)
        self._input("row")[0] = n - 1 if last else 0
        self._input("shares")[:] = np.float32(1) / np.float32(n)
        for window in self._layout.windows:
            show(self._input(f"mask {window}"), 0, window)
        self._inputs.push(0, self._layout.nbytes)

    def _input(self, name: str) -> np.ndarray:
        return self._layout.array(self._inputs, name)
