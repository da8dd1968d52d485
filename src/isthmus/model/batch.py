"""One pass over tokens of several sessions at once, each in a sandbox of its own.

The weights are read once for all rows; attention runs for each session over its own KV cache, in
its own guest's memory. A step of B sequences differs from B single ones in nothing but the number
of columns of the matrix products, and where a library's product of several columns has the bits of
several products (`batch_probe.py`), each session's logits are those that it would have alone.

Several of the B tokens may be of one session, one behind the other: all keys and values are written
before attention begins, and each row sees those up to its own, as it would if it were decoded after
the one before. So that has the bits of single steps as well.

One graph for each B serves all sessions: keys, values and masks are tensors of their own, which
are moved from session to session by writing their addresses and lengths.

Where bits need not be those of single steps, sessions whose caches lie at equal distances, as those
of agents of one kind often do, are a run: one kernel computes attention for all of it, since the
distance is a stride like any other. With a kernel for each session a card has too little to do.

::

    inputs │ tokens, positions i32 [B] │ cache rows i64 [2 · n_layer, B] │ logits rows i64 [B] │
           │ masks f16 [1 or 2, B, n_ctx] │ seen f32 [B, n_embd_q] │ logits f32 [B, n_vocab]
                                     ▲ results of attention, side by side: one product takes them

New keys and values, and at the end the logits, are written into the guests' memories by the device:
`set_rows` into one tensor that covers every address, in steps of a few bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from isthmus.device.base import Device
from isthmus.device.buffer import Buffer
from isthmus.model.batch_inputs import SEEN, BatchInputs, Leaves
from isthmus.model.forward import Pass, Scores
from isthmus.model.hparams import Hparams
from isthmus.model.kv_cache import KV_ALIGNMENT, KvLayout, rows_read
from isthmus.model.mask import MASKED, first_seen
from isthmus.model.session import Session
from isthmus.native._ggml import GgmlType
from isthmus.units import HostAddr

_FLOAT = 4
"""Bytes of a logit, and the steps in which logits have a place."""


class Row(NamedTuple):
    """A token of one session, the cache rows that are there for it, and where its logits go."""

    session: Session
    token: int
    position: int
    n_kv: int
    logits: HostAddr


@dataclass(slots=True)
class Step:
    """Tokens that one session appends in a pass, at least one; each sees those before it.

    Not frozen, since that takes three times as long to make, and a step is made for each token.
    """

    session: Session
    tokens: Sequence[int]
    logits: int = 0
    """The host address for logits after each token but the last, f32 [n_tokens - 1, n_vocab], in
    the guest's memory. Those after the last one go to the session's."""

    def rows(self) -> Iterator[Row]:
        """One for each token."""
        session, last = self.session, len(self.tokens) - 1
        for i, token in enumerate(self.tokens):
            position = session.n_tokens + i
            place = self.logits + _FLOAT * session.layout.n_vocab * i if i < last else session.base
            n_kv = rows_read(session.n_ctx, position + 1)
            yield Row(session, token, position, n_kv, HostAddr(place))


@dataclass(frozen=True)
class Arrangement:
    """In which order rows are computed, and how many of them, one behind the other, are a run."""

    rows: list[Row]
    runs: tuple[int, ...]

    @classmethod
    def of(cls, rows: list[Row], *, join: bool) -> Arrangement:
        """Each row by itself, or, to `join` them, in runs that are as long as can be."""
        if not join:
            return cls(rows, (1,) * len(rows))
        runs: list[list[Row]] = []
        for row in sorted(rows, key=lambda row: row.session.base):
            if runs and _continues(runs[-1], row):
                runs[-1].append(row)
            else:
                runs.append([row])
        runs.sort(key=len, reverse=True)  # so that there are few kinds of graphs
        return cls([row for run in runs for row in run], tuple(map(len, runs)))


def _continues(run: list[Row], row: Row) -> bool:
    """Whether a row's cache lies as far behind the last one of a run as that behind its own."""
    last = run[-1].session
    distance = last.base - run[-2].session.base if len(run) > 1 else row.session.base - last.base
    return row.session.base == last.base + distance and row.session.layout == last.layout


class Batch(Pass):
    """A pass over `n` tokens of sessions of one model. Owns its inputs."""

    def __init__(
        self, device: Device, h: Hparams, layout: KvLayout, runs: tuple[int, ...], n_ctx: int
    ) -> None:
        """`layout` is that of any of the model's sessions; n_ctx: the most that one may have."""
        n = sum(runs)
        super().__init__(device.library, h, n, n_ctx, h.n_layer * (h.nodes_per_layer + 12 * n) + 64)
        everywhere = device.everywhere
        assert everywhere is not None, "the device computes on addresses of its own"
        inputs = self.inputs = BatchInputs(device, h, n, n_ctx, layout.n_vocab)
        self._everywhere = everywhere
        self._row_nbytes = layout.row_nbytes
        self._step = math.gcd(layout.row_nbytes, KV_ALIGNMENT)
        self.tokens = inputs.place(self, GgmlType.I32, (n,), inputs.address(0))
        self.positions = inputs.place(self, GgmlType.I32, (n,), inputs.address(1))
        self._rows = [
            inputs.place(self, GgmlType.I64, (n,), inputs.address(2, 8 * n * plane))
            for plane in range(2 * h.n_layer)
        ]
        self._logits_rows = inputs.place(self, GgmlType.I64, (n,), inputs.address(3))
        self._seen = inputs.place(self, GgmlType.F32, (h.n_embd_q, n), inputs.address(SEEN))
        self._caches = self._all_addresses(layout.dtype, h.n_embd_kv, self._step)
        self._spans = self._all_addresses(GgmlType.F32, layout.n_vocab, _FLOAT)
        ends = accumulate(runs)
        self._runs = [range(end - length, end) for end, length in zip(ends, runs, strict=True)]
        self._planes = self._describe_planes(layout, everywhere)
        self._masks = self._describe_masks(everywhere)
        self._addresses = np.zeros((2 * h.n_layer, n), dtype=np.int64)
        self._row_numbers = np.arange(n)
        self._known: list[tuple[Session | None, int]] = [(None, 0)] * n
        """Of each row: whose it is, and the cache rows that are read."""
        self._known_positions = np.zeros(n, dtype=np.int64)
        """Of each row: its last token's position, up to which its mask shows cache rows."""
        self._elements = np.zeros(n, dtype=np.int64)
        """Of each row: the element of its mask that shows its last token."""
        self._flat_masks = [mask.reshape(-1) for mask in inputs.masks]

    def attend(self, layer: int, q: int, k: int, v: int, scores: Scores) -> int:
        h = self.hparams
        for tensor in (q, v, k):
            self.expand(tensor)
        self.expand(self._scatter(self._caches, self.flat_heads(k), self._rows[2 * layer]))
        self.expand(self._scatter(self._caches, v, self._rows[2 * layer + 1]))
        _, head, column, _ = self.describe(q).nb
        for index, run in enumerate(self._runs):
            shape, at = (h.head_dim, 1, h.n_head, len(run)), run.start * column
            plane = 2 * layer * len(self._runs) + index
            seen = self.flash_attention(
                self.view_4d(q, shape, (column, head, column), at),
                self._planes.tensors[plane],
                self._planes.tensors[plane + len(self._runs)],
                self._masks.tensors[scores.windowed * len(self._runs) + index],
                scores.scale,
                scores.soft_cap,
            )
            place = self.inputs.address(SEEN, 4 * h.n_embd_q * run.start)
            self.inputs.buffer.place(seen, place)
            self.expand(seen)
        return self._seen

    def route(self, router: int, x: int) -> int:
        return self.matmul_each(router, x)

    def separately(self, matrix: int, x: int) -> int:
        return self.matmul_apart(matrix, x)

    def select_outputs(self, x: int) -> int:
        return x

    def place_logits(self, logits: int) -> None:
        """Has the device write each column to where it belongs, in its guest's memory."""
        self.inputs.buffer.place(logits, self.inputs.address(6))
        self.expand(logits)
        self.output(self._scatter(self._spans, logits, self._logits_rows))

    def write(self, rows: Sequence[Row]) -> None:
        """Sets everything for one token in each row."""
        inputs = self.inputs
        positions = np.array([it.position for it in rows], dtype=np.int64)
        places = np.array([it.logits for it in rows], dtype=np.int64)
        self._point_to(rows, positions)
        self._known_positions[:] = positions
        self._elements[:] = self._row_numbers * self.n_ctx + positions
        self._show_last()
        inputs.tokens[:] = [it.token for it in rows]
        inputs.positions[:] = positions
        inputs.cache_rows[:] = (self._addresses + positions * self._row_nbytes) // self._step
        inputs.logits_rows[:] = (places - self._everywhere.base) // _FLOAT
        inputs.push()

    def advance(self, tokens: npt.NDArray[np.int32]) -> None:
        """Sets everything for the token after the last one of each row.

        The inputs are those that `write` would set. Each row is the only one of its session, which
        has appended the row's last token since; no row needs more cache rows than are read.
        """
        inputs = self.inputs
        inputs.tokens[:] = tokens
        inputs.positions += 1
        inputs.cache_rows += self._row_nbytes // self._step
        self._known_positions += 1
        self._elements += 1
        self._show_last()
        inputs.push()

    @property
    def n_steps_left(self) -> int:
        """How often the batch can `advance` until a row needs more cache rows than are read."""
        pairs = zip(self._known, self._known_positions.tolist(), strict=True)
        return min(n_kv - 1 - position for (_, n_kv), position in pairs)

    def forget(self, session: Session) -> None:
        """Keeps nothing of a session that is about to close."""
        for row, (known, _) in enumerate(self._known):
            if known is session:
                self._known[row] = (None, 0)

    def close(self) -> None:
        super().close()
        self.inputs.close()

    def _point_to(self, rows: Sequence[Row], positions: np.ndarray) -> None:
        """Has each run be of these rows, and each row see its cache rows before its own."""
        known: list[tuple[Session | None, int]] = []
        for run in self._runs:
            its_rows = rows[run.start : run.stop]
            n_kv = max(row.n_kv for row in its_rows)
            known += [(row.session, n_kv) for row in its_rows]
        old = self._known
        if known != old:
            for index, run in enumerate(self._runs):
                now = known[run.start : run.stop]
                if now != old[run.start : run.stop]:
                    self._move(index, [rows[row].session for row in run], now[0][1])
            self.changed()
        other = [a != b for a, b in zip(known, old, strict=True)]
        stale = (positions != self._known_positions + 1) | other
        for row in np.flatnonzero(stale).tolist():
            self._show(row, known[row][1], rows[row].position)
        self._known = known

    def _move(self, index: int, sessions: Sequence[Session], n_kv: int) -> None:
        """Points a run's keys, values and masks to sessions."""
        layout, run, n_runs = sessions[0].layout, self._runs[index], len(self._runs)
        layers = range(self.hparams.n_layer)
        offsets = [at(layer) for layer in layers for at in (layout.k_offset, layout.v_offset)]
        places = np.array(offsets, dtype=np.int64)[:, None]
        addresses = places + np.array([session.base for session in sessions], dtype=np.int64)
        self._planes.data[index::n_runs] = addresses[:, 0].astype(np.uint64)
        self._planes.ne[index::n_runs, 1] = n_kv
        if len(run) > 1:
            self._planes.nb[index::n_runs, 3] = sessions[1].base - sessions[0].base
        self._addresses[:, run.start : run.stop] = addresses - self._everywhere.base
        self._masks.ne[index::n_runs, 0] = n_kv
        self._masks.nb[index::n_runs, 1:3] = 2 * n_kv

    def _show(self, row: int, n_kv: int, position: int) -> None:
        """Has a row see its cache rows before `position`."""
        for mask, window in zip(self.inputs.masks, self.inputs.windows, strict=True):
            mask[row, :n_kv] = MASKED
            mask[row, first_seen(position - 1, window) : position] = 0

    def _show_last(self) -> None:
        """Has each row see its own cache row, and no longer the one that its window leaves."""
        for mask, window in zip(self._flat_masks, self.inputs.windows, strict=True):
            mask[self._elements] = 0
            if window is not None:
                left = self._known_positions >= window
                mask[self._elements[left] - window] = MASKED

    def _describe_planes(self, layout: KvLayout, everywhere: Buffer) -> Leaves:
        """Keys and values of each layer, a tensor for each run: [head_dim, n_kv, n_head_kv, n]."""
        h, n_ctx, n_runs = self.hparams, self.n_ctx, len(self._runs)
        shape = (h.head_dim, n_ctx, h.n_head_kv)
        planes = Leaves(self, everywhere, 2 * h.n_layer * n_runs, layout.dtype, *shape)
        planes.ne[:, 3] = np.tile([len(run) for run in self._runs], 2 * h.n_layer)
        planes.nb[:, 1] = layout.row_nbytes
        planes.nb[:, 2] = self.library.ggml_row_size(layout.dtype, h.head_dim)
        planes.nb[:, 3] = n_ctx * layout.row_nbytes
        planes.data[:] = everywhere.base
        return planes

    def _describe_masks(self, everywhere: Buffer) -> Leaves:
        """F16 [n_kv, 1, 1, n] of each run: what a layer sees that sees all, or a window."""
        inputs, n_ctx, n_runs = self.inputs, self.n_ctx, len(self._runs)
        n_windows = len(inputs.windows)
        masks = Leaves(self, everywhere, n_windows * n_runs, GgmlType.F16, n_ctx)
        masks.ne[:, 3] = [len(run) for run in self._runs] * n_windows
        first = [window * self.n + run.start for window in range(n_windows) for run in self._runs]
        masks.data[:] = [inputs.address(4, 2 * n_ctx * row) for row in first]
        return masks

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
