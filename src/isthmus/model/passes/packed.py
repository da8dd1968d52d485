"""One pass over prompts of several sessions, each in a sandbox of its own.

The weights are read once for all of them, and a pass over a few tokens takes about as long as
reading them. Attention runs for each session over its own tokens and its own KV cache, by the
kernel that it would have alone. Products have more columns than alone, and where that changes no
bit (`pack_probe.py`), neither does the pass; behind the last attention there is a column for each
session, and what holds for a batch holds here.

::

    inputs │ tokens, positions i32 [n] │ cache rows i64 [n] │ last columns i32 [sessions]
           │ zero i64 [1] │ masks f16 [n_kv, n] of each session, 1 or 2 │ seen f32 [n_embd_seen, n]
                                results of attention, side by side: one product takes them ▲
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from isthmus.device.base import Device
from isthmus.device.buffer import InputBuffer
from isthmus.model.own.kv_cache import rows_read
from isthmus.model.own.session import own
from isthmus.model.passes.forward import Pass, Scores, Stretch
from isthmus.model.passes.input_layout import Input, InputLayout
from isthmus.model.passes.mask import show
from isthmus.model.sampling.top import N_NODES as N_TOP_NODES
from isthmus.model.sampling.top import Top, TopFinder
from isthmus.model.shape.hparams import Hparams
from isthmus.model.step import Chunk
from isthmus.native._ggml import GgmlType


@dataclass(frozen=True)
class _Part:
    """The columns of one session."""

    chunk: Chunk
    first: int
    """Its first column."""
    n_kv: int

    @property
    def n(self) -> int:
        return len(self.chunk.tokens)

    @property
    def positions(self) -> np.ndarray:
        n_before = self.chunk.session.n_tokens
        return np.arange(n_before, n_before + self.n)


class PackedLayout(InputLayout):
    """The inputs of a pass over these chunks; see the module."""

    def __init__(self, h: Hparams, chunks: Sequence[Chunk], n_outputs: int = 1) -> None:
        """`n_outputs`: the least columns after the last attention, as of a prompt alone."""
        self.n_outputs = max(n_outputs, len(chunks))
        self.fills_outputs = n_outputs > 1
        sizes = [len(it.tokens) for it in chunks]
        self.parts = [
            _Part(it, end - size, rows_read(it.session.n_ctx, it.session.n_tokens + size))
            for it, size, end in zip(chunks, sizes, accumulate(sizes), strict=True)
        ]
        self.n = n = sum(sizes)
        self.windows = [None, h.window_tokens] if h.window else [None]
        """Of each mask: the rows that a token sees, its own among them."""
        super().__init__(
            Input("tokens", GgmlType.I32, (n,)),
            Input("positions", GgmlType.I32, (n,)),
            Input("rows", GgmlType.I64, (n,)),
            Input("last", GgmlType.I32, (self.n_outputs,)),
            Input("zero", GgmlType.I64, (1,)),
            *(Input(name, GgmlType.F16, (it.n, it.n_kv)) for name, it, _ in self.masks()),
            Input("seen", GgmlType.F32, (n, h.n_embd_seen)),
        )

    def masks(self) -> Iterator[tuple[str, _Part, int | None]]:
        """Each mask's name among the inputs, whose it is, and the rows that a token sees."""
        for window in self.windows:
            for number, part in enumerate(self.parts):
                yield f"mask {window} {number}", part, window


class Packed(Pass):
    """The graph of one pass, and what it computes from; used once.

    `inputs` has at least `layout.nbytes` bytes, which no guest can reach.
    """

    def __init__(
        self, device: Device, h: Hparams, layout: PackedLayout, inputs: InputBuffer
    ) -> None:
        n_parts, n = len(layout.parts), layout.n
        n_ctx = max(part.chunk.session.n_ctx for part in layout.parts)
        n_nodes = h.n_layer * (h.nodes_per_layer + h.nodes_per_part * n_parts) + 64
        n_nodes += (12 + N_TOP_NODES) * n_parts
        super().__init__(device.library, h, n, n_ctx, n_nodes)
        self._layout, self._inputs = layout, inputs
        if h.states:
            self.stretches = [
                Stretch(it.first, it.n, own(it.chunk.session).cache.states) for it in layout.parts
            ]
        self.tokens = self._place("tokens", n)
        self.positions = self._place("positions", n)
        self._rows = [self._place("rows", it.n, offset=8 * it.first) for it in layout.parts]
        self._last = self._place("last", layout.n_outputs)
        self._zero = self._place("zero", 1)
        self._masks = [self._place(name, it.n_kv, it.n) for name, it, _ in layout.masks()]
        self._write()

    def attend(self, q: int, k: int, v: int, scores: Scores) -> int:
        parts = self._layout.parts
        self.cuts.append(self.n_nodes)
        for tensor in filter(None, (q, v, k)):
            self.expand(tensor)
        written = self.written(scores.heads, k, v)
        for part, rows in zip(parts, self._rows, strict=True):
            planes = own(part.chunk.session).cache.planes
            for plane, columns in written:
                self.expand(self.set_rows(planes[plane], self._columns(columns, part), rows))
        first = len(parts) if scores.windowed else 0
        for part, mask in zip(parts, self._masks[first : first + len(parts)], strict=True):
            self._attend_part(part, q, mask, scores)
        return self._place("seen", scores.heads.n_embd_seen, self.n)

    def route(self, router: int, x: int) -> int:
        return self.matmul(router, x) if self._is_whole(x) else self.matmul_each(router, x)

    def separately(self, matrix: int, x: int) -> int:
        return self.matmul(matrix, x) if self._is_whole(x) else self.matmul_apart(matrix, x)

    def select_outputs(self, x: int) -> int:
        return self.get_rows(x, self._last)

    def place_logits(self, logits: int) -> None:
        """Has the device write each column to where it belongs, in its guest's memory."""
        for i, part in enumerate(self._layout.parts):
            session = part.chunk.session
            place = self.tensor(GgmlType.F32, session.layout.n_vocab)
            session.binding.place(place, session.base)
            self.output(self.set_rows(place, self.column(logits, i), self._zero))

    def find_tops(self, logits: int, finder: TopFinder, tops: Sequence[Top | None]) -> None:
        """Has the device find the candidates of each session that asks for some."""
        for i, (part, top) in enumerate(zip(self._layout.parts, tops, strict=True)):
            if top is not None:
                candidates = finder.find(self, self.column(logits, i), 1, top.k)
                self.place_top(candidates, part.chunk.session, top)

    def _is_whole(self, x: int) -> bool:
        """Whether a matrix is multiplied as that of a prompt alone: it has a column for each token.
        Behind `select_outputs` there is one for each session, and alone there would be a single
        one, unless they are filled up."""
        return self._layout.fills_outputs or self.columns_of(x) == self.n

    def _attend_part(self, part: _Part, q: int, mask: int, scores: Scores) -> None:
        """Attention of one session's columns, written beside that of the others."""
        heads = scores.heads
        _, head, column, _ = self.describe(q).nb
        shape = (heads.dim, heads.n, part.n)
        seen = self.flash_attention(
            self.swap_1_2(self.view_3d(q, shape, (head, column), part.first * column)),
            *self.cached(own(part.chunk.session), heads, part.n_kv),
            mask,
            scores.scale,
            scores.soft_cap,
            scores.sinks,
        )
        begin = 4 * heads.n_embd_seen * part.first
        self._inputs.place(seen, self._layout.address(self._inputs, "seen", begin))
        self.expand(seen)

    def _columns(self, x: int, part: _Part) -> int:
        """[ne0, n]: those of one session."""
        width = self.describe(x).nb[1]
        return self.view_2d(x, (self.describe(x).ne[0], part.n), width, part.first * width)

    def _place(self, name: str, *ne: int, offset: int = 0) -> int:
        return self._layout.place(self, self._inputs, name, *ne, offset=offset)

    def _write(self) -> None:
        layout = self._layout
        positions = np.concatenate([part.positions for part in layout.parts])
        tokens = np.concatenate([part.chunk.tokens for part in layout.parts])
        self._input("tokens")[:] = tokens
        self._input("positions")[:] = positions
        self._input("rows")[:] = positions
        last = [part.first + part.n - 1 for part in layout.parts]
        last += last[-1:] * (layout.n_outputs - len(last))
        self._input("last")[:] = last
        self._input("zero")[:] = 0
        for name, part, window in layout.masks():
            show(self._input(name), part.chunk.session.n_tokens, window)
        self._inputs.push(0, layout.offset("seen"))

    def _input(self, name: str) -> np.ndarray:
        return self._layout.array(self._inputs, name)
