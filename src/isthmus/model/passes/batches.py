"""The graphs of batches: one for each size, which serves any sessions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import TypeAlias

from isthmus.model.own.kv_cache import rows_read
from isthmus.model.own.session import own
from isthmus.model.passes.batch import Batch
from isthmus.model.passes.batch_top import BatchTop, n_found
from isthmus.model.passes.graph_builder import GraphBuilder
from isthmus.model.passes.graph_cache import GraphCache
from isthmus.model.passes.joining import Joining, try_runs
from isthmus.model.passes.rows import Rows, Shape
from isthmus.model.passes.standing import Standing
from isthmus.model.probes.widths import MAX_ROWS, Width
from isthmus.model.session import Session
from isthmus.model.step import Step

_MAX_GRAPHS = 8
"""Batches that are kept. One of 64 rows takes some megabytes and 10 ms to build."""


_Key: TypeAlias = tuple[Shape, object, int, int]
"""A batch's shape, batch key and number of candidates; and a number, since there may be several."""


class Batches:
    """Owns the batches of one model and the memory that they share. One of them runs at a time.

    If more sessions decode than one pass has room for, each of their groups has a standing batch.
    """

    def __init__(self, builder: GraphBuilder) -> None:
        self._builder = builder
        self._cache: GraphCache[_Key, Batch] = GraphCache(builder.device, _MAX_GRAPHS)
        self.width = Width(1, MAX_ROWS)
        """The class of every pass."""
        self.joining: Joining | None = None
        self._standing: dict[_Key, Standing] = {}
        """What batches computed last. The cache may have freed some of them since."""
        self._keys: dict[Session, _Key] = {}
        """The standing batch that a session is in."""

    def begin(self, steps: Sequence[Step]) -> Standing | None:
        """A batch with the inputs of these steps, of sessions with the same batch key.

        None if they are more than one pass has room for. Raises ContextFull if a session has none.
        """
        if (standing := self._try_advance(steps)) is not None:
            return standing
        for step in steps:
            step.session.require_ready(len(step.tokens))
            self._builder.expire_top(step.session)
        rows = self._try_rows(steps)
        if rows is None:
            return None
        for step in steps:
            self._end(self._keys.get(step.session))
        key, batch = self._graph(rows)
        batch.write(rows)
        standing = self._standing[key] = Standing(batch, rows, steps)
        self._keys.update(dict.fromkeys(standing.sessions, key))
        return standing

    def forget(self, session: Session) -> None:
        """Keeps nothing of a session that is about to close."""
        self._end(self._keys.get(session))
        for batch in self._cache.graphs:
            batch.forget(session)

    def close(self) -> None:
        """Frees everything."""
        self._cache.close()

    def _try_rows(self, steps: Sequence[Step]) -> Rows | None:
        """The rows of these steps, filled with rows of nobody up to the least that the class has.

        None if they are more than the most.
        """
        sessions = [step.session for step in steps for _ in step.tokens]
        runs = try_runs(sessions, self._far(steps), self.joining, self.width.most)
        if runs is None or len(sessions) > self.width.most:
            return None
        n_rows = sum(len(run.rows) for run in runs)
        tops = [self._builder.top_of(it.session) for it in steps]
        return Rows(steps, runs, self.width.filled(n_rows) - n_rows, tops)

    def _far(self, steps: Sequence[Step]) -> set[int]:
        """The rows, by number, that need more cache rows than a run may read."""
        joining = self.joining
        if joining is None or all(it.session.layout.n_ctx <= joining.most_kv for it in steps):
            return set()
        n_kv = [rows_read(step.session.n_ctx, it + 1) for step in steps for it in step.positions()]
        return {row for row, n in enumerate(n_kv) if n > joining.most_kv}

    def _try_advance(self, steps: Sequence[Step]) -> Standing | None:
        """The batch that computed these sessions' last step, moved on; None if there is none."""
        key = self._keys.get(steps[0].session)
        if key is None:
            return None
        standing = self._standing[key]
        is_kept = self._cache.try_get(key) is standing.batch
        return standing if is_kept and standing.try_advance(steps) else None

    def _end(self, key: _Key | None) -> None:
        """Lets the batch of that key stand for nobody."""
        if key is not None and (standing := self._standing.pop(key, None)) is not None:
            for session in standing.sessions:
                self._keys.pop(session, None)

    def _graph(self, rows: Rows) -> tuple[_Key, Batch]:
        """A batch of such a shape, built if there is none or it is too small."""
        shape, n_ctx = rows.shape, int(rows.n_ctx.max())
        one = next(it for it in rows.sessions if it is not None)
        k = n_found(rows.tops, one.layout.n_vocab)
        key = self._free_key(shape, self._builder.batch_key(one), k)
        self._end(key)
        batch = self._cache.try_get(key)
        if batch is None or batch.n_ctx < n_ctx:
            self._cache.free(lambda it: it == key)
            batch = self._build(one, shape, n_ctx, k)
            self._cache.put(key, batch)
        return key, batch

    def _free_key(self, shape: Shape, batch_key: object, k: int) -> _Key:
        """The key of a batch that stands for nobody. If that would be one more and there is no
        room, it is one that stands: graphs of this kind and others would be freed and built in
        turns otherwise, such as those of single steps and that of all sessions together."""
        kind, keys = (shape, batch_key, k), self._cache.keys
        same = [it for it in keys if it[:-1] == kind]
        free = [it for it in same if it not in self._standing]
        if free or (same and len(keys) == _MAX_GRAPHS):
            return (free or same)[0]
        return next(it for number in count() if (it := (*kind, number)) not in keys)

    def _build(self, one: Session, shape: Shape, n_ctx: int, k: int) -> Batch:
        """A batch that finds `k` candidates for each row, 0 for none."""
        builder = self._builder
        batch = Batch(builder.device, builder.hparams, own(one).layout, shape, n_ctx, self.joining)
        batch.panel = self.width.panel
        batch.inputs.buffer.order_with(builder.backend.handle)
        logits = builder.architecture.build(batch)
        batch.place_logits(logits)
        everywhere = builder.device.everywhere
        if k and everywhere is not None:
            top = BatchTop(builder.device, everywhere, batch.n, k)
            batch.place_candidates(builder.finder.find(batch, logits, batch.n, k), top)
        builder.place(batch, ("batch", max(shape.runs) > 1), self._cache)
        return batch
