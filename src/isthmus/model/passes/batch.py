"""One pass over tokens of several sessions at once, each in a sandbox of its own.

The weights are read once for all rows; attention runs for each session over its own KV cache, in
its own guest's memory. A step of B sequences differs from B single ones in nothing but the number
of columns of the matrix products, and where a library's product of several columns has the bits of
several products (`batch_probe.py`), each session's logits are those that it would have alone.

Several of the B tokens may be of one session, one behind the other: all keys and values are written
before attention begins, and each row sees those up to its own, as it would if it were decoded after
the one before. So that has the bits of single steps as well.

One graph for each B serves all sessions: keys, values and masks are tensors of their own, which
are moved from session to session by writing their addresses and lengths. Between two steps of the
same sessions only positions, cache rows and an element of each mask change; see `standing.py`.

Where a device can, sessions whose caches lie at equal distances, as those of agents of one kind
often do, are a run, to which one kernel attends: see `joining.py`. Where bits depend on the number
of rows, rows of nobody fill the pass: see `widths.py`.

::

    inputs │ tokens, positions i32 [B] │ cache rows i64 [planes, B] │ logits rows i64 [B] │
           │ masks f16 [1 or 2, B, n_ctx] │ seen f32 [B, n_embd_seen] │ logits f32 [B, n_vocab]
           │ what rows of nobody write    ▲ results of attention, side by side: one product takes

New keys and values, and at the end the logits, are written into the guests' memories by the device:
`set_rows` into one tensor that covers every address, in steps of a few bytes.
"""

from __future__ import annotations

import math
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from isthmus.device.base import Device
from isthmus.device.buffer import Buffer
from isthmus.model.own.kv_cache import KV_ALIGNMENT, KvLayout
from isthmus.model.own.session import own
from isthmus.model.passes.batch_inputs import BatchInputs, Leaves, set_data
from isthmus.model.passes.batch_top import BatchTop
from isthmus.model.passes.forward import Pass, Scores, Stretch
from isthmus.model.passes.joining import Joining
from isthmus.model.passes.mask import MASKED, first_seen
from isthmus.model.passes.rows import Rows, Shape
from isthmus.model.sampling.top import N_NODES as N_TOP_NODES
from isthmus.model.session import Session
from isthmus.model.shape.hparams import Hparams
from isthmus.native._ggml import GgmlType

_FLOAT = 4
"""Bytes of a logit, and the steps in which logits have a place."""
Index = slice | npt.NDArray[np.int64]
"""Rows of an array."""


class Batch(Pass):
    """A pass over `n` tokens of sessions of one model. Owns its inputs."""

    panel = 0
    """Columns of each panel of a product: see `widths.py`. To be set before the pass is written."""

    def __init__(
        self,
        device: Device,
        h: Hparams,
        layout: KvLayout,
        shape: Shape,
        n_ctx: int,
        joining: Joining | None = None,
    ) -> None:
        """`layout` is that of any session of the model, `n_ctx` the largest context of one.

        `joining` made the runs; None if each has one row.
        """
        n, runs = shape.n, shape.runs
        n_nodes = h.n_layer * (h.nodes_per_layer + h.nodes_per_part * n) + 64 + N_TOP_NODES
        super().__init__(device.library, h, n, n_ctx, n_nodes)
        everywhere = device.everywhere
        assert everywhere is not None, "the device computes on addresses of its own"
        self.inputs = BatchInputs(device, h, n, n_ctx, layout, shape.unseen)
        self._joining = joining
        self._everywhere = everywhere
        self._row_nbytes = np.array(layout.row_nbytes, np.int64)[:, None]
        """i64 [planes, 1]"""
        self._step = math.gcd(*layout.row_nbytes, KV_ALIGNMENT)
        self._place_inputs()
        self._caches = {
            width: self._all_addresses(layout.dtype, width, self._step) for width in {*h.planes}
        }
        """By width of a plane."""
        self._spans = self._all_addresses(GgmlType.F32, layout.n_vocab, _FLOAT)
        self._take(shape)
        self._kinds = [*dict.fromkeys(h.heads.values())]
        """Layers of one kind read the same planes in the same way."""
        self._read = [plane for it in self._kinds for plane in (it.keys, it.values)]
        """The planes that attention of each kind reads."""
        self._planes = self._describe_planes(layout, everywhere)
        self._states = self._describe_states(everywhere)
        self._moved_on: list[list[int]] = [[] for _ in h.states]
        """Of each state, what writes it in each row."""
        self._masks = self._describe_masks(everywhere)
        self._flat_masks = [mask.reshape(-1) for mask in self.inputs.masks]
        self._begin(n, len(runs))

    def _take(self, shape: Shape) -> None:
        ends = accumulate(shape.runs)
        self._runs = [range(end - n, end) for end, n in zip(ends, shape.runs, strict=True)]
        self._unseen = shape.unseen
        self._n_sequences = [n + shape.unseen for n in shape.runs]
        """That the kernel of each run attends to."""

    def _place_inputs(self) -> None:
        inputs, n = self.inputs, self.n
        self.tokens = inputs.place(self, "tokens", n)
        self.positions = inputs.place(self, "positions", n)
        self._rows = [
            inputs.place(self, "cache rows", n, offset=8 * n * plane)
            for plane in range(len(self.hparams.planes))
        ]
        self._logits_rows = inputs.place(self, "logits rows", n)

    def _begin(self, n: int, n_runs: int) -> None:
        """Nobody is in it yet."""
        self._addresses = np.zeros((len(self._rows), n), dtype=np.int64)
        self._row_numbers = np.arange(n)
        self._live: Index = slice(None)
        """The rows that are somebody's."""
        self._moves = np.ones(n, dtype=np.int64)
        """By how many positions each moves on with a token: 0 of nobody."""
        self._cache_moves = self._moves
        """By how many steps in the caches."""
        self._sessions: list[Session | None] = [None] * n
        """The session of each row."""
        self._n_kv = np.zeros(n_runs, dtype=np.int64)
        """The cache rows that each run reads."""
        self._positions = np.full(n, -1, dtype=np.int64)
        """The position of each row's last token, up to which its masks show cache rows."""
        self._elements = np.zeros(n, dtype=np.int64)
        """The element of each live row's mask that shows its last token."""
        self._top: BatchTop | None = None

    def attend(self, q: int, k: int, v: int, scores: Scores) -> int:
        heads = scores.heads
        for tensor in filter(None, (q, v, k)):
            self.expand(tensor)
        for plane, columns in self.written(heads, k, v):
            cache = self._caches[self.hparams.planes[plane]]
            self.expand(self._scatter(cache, columns, self._rows[plane]))
        _, head, column, _ = self.describe(q).nb
        first = 2 * self._kinds.index(heads) * len(self._runs)
        for index, run in enumerate(self._runs):
            shape, at = (heads.dim, 1, heads.n, len(run)), run.start * column
            plane = first + index
            asked = self.view_4d(q, shape, (column, head, column), at)
            if self._unseen:  # ggml makes no view of more than there is
                struct = self.describe(asked)
                struct.ne[3], struct.nb[3] = self._n_sequences[index], 0
            seen = self.flash_attention(
                asked,
                self._planes.tensors[plane],
                self._planes.tensors[plane + len(self._runs)],
                self._masks.tensors[scores.windowed * len(self._runs) + index],
                scores.scale,
                scores.soft_cap,
                scores.sinks,
            )
            place = self.inputs.address("seen", 4 * heads.n_embd_seen * run.start)
            self.inputs.buffer.place(seen, place)
            self.expand(seen)
        return self.inputs.place(self, "seen", heads.n_embd_seen, self.n)

    def matmul(self, a: int, b: int) -> int:
        struct, panel = self.describe(b), self.panel
        ne0, n, n_more, _ = struct.ne
        if not panel or n <= panel or n_more > 1:
            return super().matmul(a, b)
        nb1 = struct.nb[1]
        panels = self.view_3d(b, (ne0, panel, n // panel), (nb1, panel * nb1), 0)
        product = super().matmul(a, panels)
        return self.reshape(product, self.describe(product).ne[0], n)

    def route(self, router: int, x: int) -> int:
        return self.matmul_each(router, x)

    def separately(self, matrix: int, x: int) -> int:
        return self.matmul_apart(matrix, x)

    def move_on(self, stretch: Stretch, number: int, value: int) -> int:
        written = super().move_on(stretch, number, value)
        self._moved_on[number].append(written)
        return written

    def select_outputs(self, x: int) -> int:
        return x

    def place_logits(self, logits: int) -> None:
        """Has the device write each column to where it belongs, in its guest's memory."""
        product = self.describe(logits).view_src or logits  # of panels it is a view
        self.inputs.buffer.place(product, self.inputs.address("logits"))
        self.expand(logits)
        self.output(self._scatter(self._spans, logits, self._logits_rows))

    def place_candidates(self, candidates: int, top: BatchTop) -> None:
        """Has the device write f32 [2, k, n] to where `top`, which becomes the batch's, says."""
        self._top = top
        pairs = self.reshape(candidates, 2, top.k * top.n)
        everywhere = self._all_addresses(GgmlType.F32, 2, _FLOAT)
        self.output(self._scatter(everywhere, pairs, top.rows(self)))

    def write(self, rows: Rows) -> None:
        """Sets everything for these rows, whose shape is the batch's."""
        if self._top is not None:
            self._top.write(rows.tops)
        inputs, n_kv = self.inputs, rows.n_kv(self._joining)
        positions, at = rows.positions, np.maximum(rows.positions, 0)
        if rows.sessions != self._sessions or (n_kv != self._n_kv).any():
            self._move(rows, n_kv)
            self.changed()
        others = (positions != self._positions + 1) & ((positions >= 0) | (self._positions >= 0))
        for row in np.flatnonzero(others).tolist():
            self._show(row, int(self._positions[row]), int(positions[row]) - 1)
        self._positions[:] = positions
        self._elements = (self._row_numbers * self.n_ctx + positions)[self._live]
        self._show_last()
        inputs.tokens[:] = rows.tokens
        inputs.positions[:] = at
        inputs.cache_rows[:] = (self._addresses + at * self._row_nbytes) // self._step
        logits = np.where(positions < 0, inputs.idle_logits, rows.logits)
        inputs.logits_rows[:] = (logits - self._everywhere.base) // _FLOAT
        inputs.push()

    def advance(self, tokens: npt.NDArray[np.int32]) -> None:
        """Sets everything for the token after the last one of each live row.

        The inputs are those that `write` would set. Each row is the only one of its session, which
        has appended the row's last token since; no row needs more cache rows than are read.
        """
        inputs = self.inputs
        inputs.tokens[self._live] = tokens
        np.add(inputs.positions, self._moves, out=inputs.positions, casting="same_kind")
        inputs.cache_rows += self._cache_moves
        self._positions += self._moves
        self._elements += 1
        self._show_last()
        inputs.push()

    @property
    def n_steps_left(self) -> int:
        """How often the batch can `advance` until a row needs more cache rows than are read."""
        ends = np.repeat(self._n_kv, [len(run) for run in self._runs])
        left = ends - self._positions[: len(ends)]
        return int(left[self._positions[: len(ends)] >= 0].min()) - 1

    def forget(self, session: Session) -> None:
        """Keeps nothing of a session that is about to close."""
        self._sessions = [None if it is session else it for it in self._sessions]

    def close(self) -> None:
        super().close()
        self.inputs.close()
        if self._top is not None:
            self._top.close()

    def _move(self, rows: Rows, n_kv: npt.NDArray[np.int64]) -> None:
        """Points each run's keys, values and masks to its sessions, whose first `n_kv` cache rows
        are read."""
        self._sessions, self._n_kv = [*rows.sessions], n_kv
        self._live = slice(None) if len(rows.live) == rows.n else rows.live
        self._moves = (rows.positions >= 0).astype(np.int64)
        self._cache_moves = self._moves * (self._row_nbytes // self._step)
        bases = [own(it).kv_base if it else 0 for it in rows.sessions]
        before = np.cumsum(self._row_nbytes)[:, None] - self._row_nbytes  # in rows of other planes
        addresses = np.array(bases, np.int64) + before * rows.n_ctx
        addresses[:, rows.positions < 0] = self.inputs.idle_cache_row
        shape, starts = (len(self._read), len(self._runs)), [run.start for run in self._runs]
        self._planes.data.reshape(shape)[:] = addresses[self._read][:, starts]
        self._planes.ne[:, 1].reshape(shape)[:] = n_kv
        distances = self._planes.nb[:, 3].reshape(shape)
        for index, run in enumerate(rows.runs):
            if len(run.rows) > 1:
                distances[:, index] = run.distance
        self._addresses[:] = addresses - self._everywhere.base
        self._masks.ne[:, 0].reshape(-1, len(self._runs))[:] = n_kv
        joined = np.array([run.joined for run in rows.runs])
        apart = 2 * n_kv
        if self._joining is not None:
            apart = np.where(joined, self._joining.mask_stride(n_kv), apart)
        self._masks.nb[:, 1].reshape(-1, len(self._runs))[:] = apart
        self._masks.nb[:, 2] = self._masks.nb[:, 1]
        self._move_states(rows)

    def _move_states(self, rows: Rows) -> None:
        """Points each row's states to its session's; all of nobody's to one place."""
        idle = self.inputs.idle_state
        bases = np.array([own(it).states_base if it else idle for it in rows.sessions], np.uint64)
        live = rows.positions >= 0
        states = zip(self._states, self._moved_on, self.hparams.state_offsets, strict=True)
        for leaves, written, offset in states:
            leaves.data[:] = bases + np.uint64(offset) * live.astype(np.uint64)
            set_data(written, leaves.data)

    def _show(self, row: int, before: int, last: int) -> None:
        """Has a row see the cache rows up to `last`, after it saw those up to `before`."""
        for mask, window in zip(self.inputs.masks, self.inputs.windows, strict=True):
            mask[row, first_seen(before, window) : before + 1] = MASKED
            mask[row, first_seen(last, window) : max(0, last + 1)] = 0

    def _show_last(self) -> None:
        """Has each live row see its own cache row, and no longer the one that its window leaves."""
        for mask, window in zip(self._flat_masks, self.inputs.windows, strict=True):
            mask[self._elements] = 0
            if window is not None:
                left = self._positions[self._live] >= window
                mask[self._elements[left] - window] = MASKED

    def _describe_planes(self, layout: KvLayout, everywhere: Buffer) -> Leaves:
        """Keys and values of each kind, a tensor for each run: [dim, n_kv, n_head_kv, n]."""
        n_ctx, n_runs, n_read = self.n_ctx, len(self._runs), len(self._read)
        dims = [dim for it in self._kinds for dim in (it.dim, it.value_dim)]
        sizes = [self.library.ggml_row_size(layout.dtype, dim) for dim in dims]
        row_nbytes = np.repeat(self._row_nbytes[self._read, 0], n_runs)
        planes = Leaves(self, everywhere, n_read * n_runs, layout.dtype, dims[0], n_ctx)
        planes.ne[:, 0] = np.repeat(dims, n_runs)
        planes.ne[:, 2] = np.repeat([it.n_kv for it in self._kinds], 2 * n_runs)
        planes.ne[:, 3] = np.tile(self._n_sequences, n_read)
        planes.nb[:, 1] = row_nbytes
        planes.nb[:, 2] = np.repeat(sizes, n_runs)
        planes.nb[:, 3] = n_ctx * row_nbytes
        planes.data[:] = everywhere.base
        return planes

    def _describe_masks(self, everywhere: Buffer) -> Leaves:
        """F16 [n_kv, 1, 1, n] of each run: what a layer sees that sees all, or a window."""
        inputs, n_ctx, n_runs = self.inputs, self.n_ctx, len(self._runs)
        n_windows = len(inputs.windows)
        masks = Leaves(self, everywhere, n_windows * n_runs, GgmlType.F16, n_ctx)
        masks.ne[:, 3] = self._n_sequences * n_windows
        n = self.n + self._unseen
        first = [window * n + run.start for window in range(n_windows) for run in self._runs]
        masks.data[:] = [inputs.address("masks", 2 * n_ctx * row) for row in first]
        return masks

    def _describe_states(self, everywhere: Buffer) -> list[Leaves]:
        """Of each state, a tensor for each row: F32 of its shape."""
        found = []
        for state in self.hparams.states:
            leaves = Leaves(self, everywhere, self.n, GgmlType.F32, *state.shape)
            leaves.data[:] = everywhere.base
            found.append(leaves)
        if found:
            by_row = zip(*(it.tensors for it in found), strict=True)
            self.stretches = [Stretch(row, 1, states) for row, states in enumerate(by_row)]
        return found

    def _all_addresses(self, dtype: GgmlType, width: int, step: int) -> int:
        """A tensor at the first address, whose rows overlap: one begins at every `step` bytes."""
        tensor = self.tensor(dtype, width, 1)
        struct = self.describe(tensor)
        struct.nb[1] = struct.nb[2] = struct.nb[3] = step
        struct.data = self._everywhere.base
        struct.buffer = self._everywhere.handle
        return tensor

    def _scatter(self, places: int, values: int, rows: int) -> int:
        """Writes each column of `values` where its row of `places` begins.

        ggml refuses to make a view of overlapping rows, so it has one row until it is made.
        """
        result = self.set_rows(places, values, rows)
        struct = self.describe(result)
        struct.ne[1] = self._everywhere.nbytes // struct.nb[1]
        return result
