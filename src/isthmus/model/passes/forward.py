"""A forward pass as architectures write it down.

A `Pass` is a graph that knows its inputs and where the KV cache lies: an architecture says only
*what* is computed, not *where*. A `Forward` is one over several tokens of a session, a
`Batch` (batch.py) one over a token each of several sessions, a `Packed` (packed.py) one over
several tokens each of several sessions.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from isthmus.device.graph import Graph
from isthmus.model.own.session import OwnSession
from isthmus.model.passes.forward_inputs import ForwardInputs
from isthmus.model.sampling.top import N_NODES as N_TOP_NODES
from isthmus.model.sampling.top import Top
from isthmus.model.session import Session
from isthmus.model.shape.hparams import Heads, Hparams, Rope
from isthmus.model.spans import Embeddings
from isthmus.native._ggml import GgmlType
from isthmus.native.loader import Library


@dataclass(frozen=True)
class Scores:
    """How one layer's products of queries and keys become weights of values."""

    heads: Heads
    scale: float
    """Factor of the products."""
    soft_cap: float = 0.0
    """Scaled products become soft_cap * tanh(product / soft_cap); 0: they stay."""
    windowed: bool = False
    """Whether a token sees the model's window only."""
    sinks: int = 0
    """F32 [n_head]: a product of each head that takes weight from values; 0: there is none."""


@dataclass(frozen=True)
class Stretch:
    """Columns of a pass that are of one session, in a row, and move its states on."""

    first: int
    n: int
    states: Sequence[int]
    """The session's, in the order of `Hparams.states`."""


class Pass(Graph, ABC):
    """A forward pass over `n` tokens, whose `tokens` and `positions` are i32 [n]."""

    tokens: int
    positions: int
    stretches: Sequence[Stretch] = ()
    """All columns, if the model keeps states. Several of one session are in their order."""
    cuts: list[int]
    """Where attention of each layer begins, in nodes: a prefill is computed in such parts."""
    embeddings = 0
    """f32 [n_embd, n] in place of what the model's table has for `tokens`; 0: there are none."""

    def __init__(
        self, library: Library, hparams: Hparams, n: int, n_ctx: int, max_nodes: int
    ) -> None:
        super().__init__(library, max_nodes)
        self.hparams = hparams
        self.n, self.n_ctx = n, n_ctx
        self.cuts = []

    # ------------------------------------------------------------------ parts of a model

    def heads(self, x: int, n_head: int) -> int:
        """[dim, n_head, n] from [dim * n_head, n]."""
        return self.reshape(x, self.describe(x).ne[0] // n_head, n_head, self.n)

    def flat_heads(self, x: int) -> int:
        """[dim * n_head, n] from [dim, n_head, n], as a view.

        Devices fuse rope, this view and set_rows into one kernel.
        """
        shape = self.describe(x)
        return self.view_2d(x, (shape.ne[0] * shape.ne[1], self.n), shape.nb[2], 0)

    def heads_at(self, x: int, n_head: int, dim: int, first: int) -> int:
        """[dim, n_head, n]: the rows from `first` on in a fused product (F32)."""
        shape, width = (dim, n_head, self.n), self.describe(x).nb[1]
        return self.view_3d(x, shape, (4 * dim, width), 4 * first)

    def rows_at(self, x: int, n_rows: int, first: int) -> int:
        """[n_rows, n]: the rows from `first` on in a fused product (F32)."""
        return self.view_2d(x, (n_rows, self.n), self.describe(x).nb[1], 4 * first)

    def rope(self, x: int, rope: Rope, factors: int = 0) -> int:
        """x with its positions rotated in; `factors` divide the frequencies, 0 for none."""
        return int(
            self.library.ggml_rope_ext(
                self._context, x, self.positions, factors, rope.n_dims, rope.kind,
                rope.n_ctx_original, rope.freq_base, rope.freq_scale, rope.ext_factor,
                rope.attn_factor, rope.beta_fast, rope.beta_slow,
            )
        )  # fmt: skip

    def at_positions(self, numbers: int) -> int:
        """F32 [1, 1, n]: the elements of a vector at the tokens' positions."""
        column = self.reshape(numbers, 1, self.describe(numbers).ne[0])
        return self.reshape(self.get_rows(column, self.positions), 1, 1, self.n)

    def columns_of(self, x: int) -> int:
        """How many columns a matrix has: less than `n` once outputs were selected."""
        return int(self.describe(x).ne[1])

    def column(self, x: int, number: int) -> int:
        """[ne0, 1]: one column of a matrix."""
        shape = self.describe(x)
        return self.view_2d(x, (shape.ne[0], 1), shape.nb[1], number * shape.nb[1])

    def outputs(self, layer: int, *tensors: int) -> tuple[int, ...]:
        """The tensors, and behind the last layer only those columns that `select_outputs` takes."""
        if layer < self.hparams.n_layer - 1:
            return tensors
        return tuple(self.select_outputs(each) for each in tensors)

    def route(self, router: int, x: int) -> int:
        """router · x, of a small matrix that decides and is not quantised."""
        return self.matmul(router, x)

    def columns_at(self, x: int, first: int, n: int) -> int:
        """[ne0, n] or [ne0, ne1, n]: some columns of a matrix, or the same of a stack's last
        dimension."""
        if n == self.n:
            return x
        struct = self.describe(x)
        ne0, ne1, n_columns, _ = struct.ne
        _, nb1, nb2, _ = struct.nb
        if n_columns == 1:
            return self.view_2d(x, (ne0, n), nb1, first * nb1)
        return self.view_3d(x, (ne0, ne1, n), (nb1, nb2), first * nb2)

    def by_stretch(self, like: int, compute: Callable[[Stretch], int]) -> int:
        """F32 [n_rows, n], shaped as `like`: what `compute` makes of each session's columns.

        It is put together here: tokens of one session are computed in order, since `compute` has
        what it writes to states be part of the graph at once.
        """
        self.cuts.append(self.n_nodes)
        if len(self.stretches) == 1:
            return compute(self.stretches[0])
        whole = self.copied(like)
        for it in self.stretches:
            part = self.columns_at(whole, it.first, it.n)
            self.expand(self.copy_into(compute(it), part))
        return whole

    def move_on(self, stretch: Stretch, number: int, value: int) -> int:
        """Writes the next value of a session's state, and returns the tensor that is written."""
        written = self.copy_into(value, stretch.states[number])
        self.expand(written)
        return written

    def matmul_each(self, matrix: int, x: int) -> int:
        """matrix · x, column by column: as many products, whose bits are those of single ones."""
        n_in, width = self.describe(x).ne[0], self.describe(x).nb[1]
        numbers = range(self.columns_of(x))
        columns = [self.view_2d(x, (n_in, 1), width, number * width) for number in numbers]
        products = [self.matmul(matrix, column) for column in columns]
        return functools.reduce(self.join_columns, products)

    def matmul_apart(self, matrix: int, x: int) -> int:
        """matrix · x in one product, of which each column is a matrix of its own: several that are
        not quantised have other bits than single ones otherwise."""
        n_in, n = self.describe(x).ne[0], self.columns_of(x)
        product = self.matmul(matrix, self.reshape(x, n_in, 1, n))
        return self.reshape(product, self.describe(product).ne[0], n)

    def low_rank(self, a: int, b: int, x: int) -> int:
        """b · (a · x), of an adapter's matrices."""
        return self.separately(b, self.separately(a, x))

    def separately(self, matrix: int, x: int) -> int:
        """matrix · x, of one of an adapter's."""
        return self.matmul(matrix, x)

    def written(self, heads: Heads, k: int, v: int) -> list[tuple[int, int]]:
        """(plane, rows for it) of what a layer writes to the cache."""
        planes = [(heads.keys, self.flat_heads(k))] if k else []
        return [*planes, (heads.values, v)] if v else planes

    def cached(self, session: OwnSession, heads: Heads, n_kv: int) -> tuple[int, int]:
        """[dim, n_kv, n_head_kv] each: a session's keys and values as attention wants them, by
        views of the first rows of two planes."""
        planes = session.cache.planes
        keys = self._cached_heads(session, planes[heads.keys], (heads.dim, n_kv, heads.n_kv))
        values = planes[heads.values]
        return keys, self._cached_heads(session, values, (heads.value_dim, n_kv, heads.n_kv))

    def _cached_heads(self, session: OwnSession, plane: int, shape: tuple[int, int, int]) -> int:
        head_nbytes = self.library.ggml_row_size(session.layout.dtype, shape[0])
        return self.view_3d(plane, shape, (self.describe(plane).nb[1], head_nbytes), 0)

    def place_top(self, candidates: int, session: Session, top: Top) -> None:
        """Has the device write a session's candidates where the guest reads them."""
        session.binding.place(candidates, top.address)
        self.output(candidates)

    @abstractmethod
    def attend(self, q: int, k: int, v: int, scores: Scores) -> int:
        """Writes k and v to the cache, then attention of q over it: [n_embd_seen, n].

        q is [dim, n_head, n], k [dim, n_head_kv, n], v [n_embd_v, n]. k and v are 0 in a layer that
        reads what another one wrote, v is 0 where values are the first elements of keys.
        """

    @abstractmethod
    def select_outputs(self, x: int) -> int:
        """Only the columns of x after which somebody asks for logits."""


class Forward(Pass):
    """A pass over the next `n` tokens of one session, which sees the first `n_kv` cache rows."""

    def __init__(
        self,
        session: OwnSession,
        inputs: ForwardInputs,
        n: int,
        n_kv: int,
        embeddings: Embeddings | None = None,
    ) -> None:
        """With `embeddings`, which are read where they lie, tokens do not matter."""
        h = session.hparams
        library = session.owner.device.library
        n_nodes = h.nodes_per_layer * h.n_layer + 64 + N_TOP_NODES
        super().__init__(library, h, n, session.n_ctx, n_nodes)
        self.session = session
        self.n_kv = n_kv
        self.inputs = inputs
        self.tokens = inputs.place(self, "tokens", n)
        self.positions = inputs.place(self, "positions", n)
        self.rows = inputs.place(self, "rows", n)
        self._given = embeddings
        if embeddings is not None:
            self.embeddings = self._placed(embeddings)
            self._masks = [each.written(self, n_kv, n) for each in inputs.masks]
        else:
            self._masks = [each.cut(self, session.n_tokens, n_kv, n) for each in inputs.masks]
        self._caches: list[int] = []
        """The views of the cache that attention reads: `n_kv` rows of planes."""
        self._last = inputs.place(self, "outputs", inputs.n_outputs) if n > 1 else 0
        if h.states:
            self.stretches = [Stretch(0, n, session.cache.states)]

    def move(self, first: int, n_kv: int) -> None:
        """Makes it the graph of `n` tokens from position `first` on, which sees `n_kv` rows.

        Nothing is built anew: lengths are written, as it matters to no other tensor.
        """
        for view in self._caches if n_kv != self.n_kv else ():
            self.describe(view).ne[1] = n_kv
        for mask in self._masks:
            mask.move(self, first, n_kv)
        self.n_kv = n_kv
        self.changed()

    def attend(self, q: int, k: int, v: int, scores: Scores) -> int:
        heads, planes = scores.heads, self.session.cache.planes
        self.cuts.append(self.n_nodes)
        for tensor in filter(None, (q, v, k)):
            self.expand(tensor)
        for plane, rows in self.written(heads, k, v):
            self.expand(self.set_rows(planes[plane], rows, self.rows))
        caches = self.cached(self.session, heads, self.n_kv)
        self._caches.extend(caches)
        seen = self.flash_attention(
            self.swap_1_2(q),
            *caches,
            self._masks[scores.windowed].tensor,
            scores.scale,
            scores.soft_cap,
            scores.sinks,
        )
        return self.reshape(seen, heads.n_embd_seen, self.n)

    def select_outputs(self, x: int) -> int:
        return self.get_rows(x, self._last) if self._last else x

    # ------------------------------------------------------------------ inputs and output

    def place_logits(self, logits: int) -> None:
        """Has the device write them where the guest reads them, in the session's memory.

        The last product does it, or, where that is far or has several columns, one more kernel that
        writes a row at once.
        """
        n_vocab = self.session.layout.n_vocab
        several = self.columns_of(logits) > 1
        far = self.inputs.logits_are_far or several
        if several:
            logits = self.view_2d(logits, (n_vocab, 1), self.describe(logits).nb[1], 0)
        place = self.tensor(GgmlType.F32, n_vocab) if far else logits
        self.session.binding.place(place, self.session.base)
        if far:
            zero = self.inputs.place(self, "zero", 1)
            self.output(self.set_rows(place, logits, zero))
        else:
            self.output(place)

    def write_tokens(self, tokens: np.ndarray, first: int) -> None:
        """Sets ids, positions and cache rows of the `n` tokens from position `first` on."""
        inputs, n = self.inputs, self.n
        inputs.tokens[:n] = tokens
        inputs.positions[:n] = np.arange(first, first + n, dtype=np.int32)
        inputs.rows[:n] = np.arange(first, first + n, dtype=np.int64)
        inputs.outputs[:] = n - 1
        inputs.push()

    def write_token(self, token: int, position: int) -> None:
        """As `write_tokens` for one token, without making arrays."""
        inputs = self.inputs
        inputs.tokens[0] = token
        inputs.positions[0] = position
        inputs.rows[0] = position
        inputs.push()

    def write_masks(self, first: int) -> None:
        """Lets each token see the cache rows up to its own."""
        for mask in self.inputs.masks:
            if self._given is None:
                mask.write(first, self.n_kv, self.n)
            else:
                mask.write_whole(first, self.n_kv, self.n, causal=self._given.causal)

    def extend_masks(self, position: int) -> None:
        """Lets a single token see one more row: all that changes from token to token."""
        for mask in self.inputs.masks:
            mask.extend(position)

    def _placed(self, embeddings: Embeddings) -> int:
        binding, (n, width) = self.session.binding, (embeddings.n_rows, embeddings.width)
        tensor = self.tensor(GgmlType.F32, width, n)
        binding.send(embeddings.address, 4 * width * n)
        binding.place(tensor, embeddings.address)
        return tensor
