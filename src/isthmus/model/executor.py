"""Runs a model's forward passes: prefill in chunks, decode with a graph that is used again.

A step of decoding reads: find the session's graph, write the token and one mask element, compute.
The graph is built anew when attention must see 256 rows more, which takes about a millisecond.
All steps run on the device's thread, so they share their graphs' memory and inputs without a lock.

A chunk of prefill has memory of its own and is computed in jobs, between which others decode. One
pass of prefill is under way at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from isthmus.config import ModelSettings
from isthmus.device.base import Device
from isthmus.device.graph import GraphAllocator
from isthmus.model.architectures import Architecture
from isthmus.model.batches import Batches
from isthmus.model.checks import nothing
from isthmus.model.forward import Forward
from isthmus.model.graph_builder import GraphBuilder
from isthmus.model.joining import Joining
from isthmus.model.kv_cache import KV_TYPES, N_CTX_MULTIPLE, rows_read
from isthmus.model.parts import Chunk, Jobs, finish
from isthmus.model.prefill_graphs import PrefillGraphs
from isthmus.model.rows import Step
from isthmus.model.session import Session
from isthmus.model.standing import Standing
from isthmus.model.widths import Width
from isthmus.units import HostAddr

_Result = TypeVar("_Result")
_MOST_GRAPHS = 8
"""Sessions that keep a decode graph, of each model."""


class Executor:
    """Owns a backend, and the memory that its graphs share."""

    def __init__(
        self,
        device: Device,
        architecture: Architecture,
        settings: ModelSettings,
        require_intact: Callable[[], None] = nothing,
    ) -> None:
        """`require_intact` is called around each pass, and raises if weights were lost."""
        self._require_intact = require_intact
        self._device = device
        self._n_chunk = settings.prefill_chunk
        self._backend = device.new_backend(settings.deterministic)
        self.builder = GraphBuilder(device, architecture, self._backend)
        self.counters = self.builder.counters
        self._decode_memory = GraphAllocator(device.library, device.buffer_type)
        self._batches = Batches(self.builder)
        self.kv_type = KV_TYPES[settings.kv_type]
        self.always_batches = False
        """Whether a single token is a batch as well; see `use`."""
        self._decode_inputs = self.builder.new_inputs(1, N_CTX_MULTIPLE)
        self._masked: tuple[Session, int, int] | None = None
        """What the decode inputs' masks were written for: the session, the cache rows that they
        cover, and the position of its next token. That session is the last one in `_with_graph`."""
        self._with_graph: WeakKeyDictionary[Session, None] = WeakKeyDictionary()
        """The sessions that have a decode graph, the one used last at the end."""
        self._prefill_graphs = PrefillGraphs(self.builder, self._n_chunk)
        self._jobs = Jobs()
        self._prefilling = threading.Lock()
        """Held from the beginning of a pass of prefill to its end."""
        self._in_pass: tuple[Session, ...] = ()
        """The sessions of that pass."""

    def use(self, width: Width, joining: Joining | None, *, single_steps: bool) -> None:
        """Has every pass from now on be of a class, and says how sessions share attention.

        `single_steps`: a single token of a session that is alone is computed without both. Before
        the first pass, or while every pass has had the bits of such a token.
        """
        self._batches.width, self._batches.joining = width, joining
        self.builder.n_outputs = 1 if single_steps else width.least
        self.always_batches = not single_steps

    # ------------------------------------------------------------------ prefill

    def chunks(self, session: Session, tokens: Sequence[int]) -> list[Chunk]:
        """The chunks in which a prompt is computed, for `append`. Computes nothing.

        Raises ContextFull if the session has no room for all of them.
        """
        session.require_room(len(tokens))
        ids = np.asarray(tokens, dtype=np.int32)
        n = self._n_chunk
        parts = (ids[start : start + n] for start in range(0, len(ids), n))
        last = (len(ids) - 1) // n
        return [Chunk(session, part, last=i == last) for i, part in enumerate(parts)]

    @property
    def is_prefilling(self) -> bool:
        """Whether a pass of prefill is under way, so that `append` has to wait."""
        return self._prefilling.locked()

    def append(self, chunks: Sequence[Chunk]) -> Generator[None, None, None]:
        """Computes chunks in one pass: each next() is one job of about `parts.JOB_S` seconds.

        When the iterator ends, each session has its chunk's tokens, and the logits after them if
        the chunk is the last one of its prompt. Several chunks must be last ones of different
        sessions, have more than one token, and one `batch_key`; the bits are those of one after the
        other if `Exactness.packing`.

        After an error, or if the iterator is closed early, each session has the tokens that it had.
        The caller takes back earlier chunks of a prompt: `Session.roll_back`. Only on the device's
        thread. Raises RuntimeError if another pass is under way, DeviceFailed.
        """
        if not self._prefilling.acquire(blocking=False):
            raise RuntimeError(
                "a pass of prefill cannot begin while another one is under way: wait until "
                "is_prefilling is false"
            )
        try:
            yield from self._append(chunks)
        finally:
            self._prefilling.release()

    def prefill(self, session: Session, tokens: Sequence[int]) -> None:
        """Appends tokens, all at once; afterwards the session has the logits after the last one.

        On any thread; it waits for a pass that is under way. On an error the session has the tokens
        that it had. Raises ContextFull, DeviceFailed, and RuntimeError on the device's thread if a
        pass is under way, which that thread would have to end.
        """
        if not self._prefilling.acquire(blocking=False):
            if self._device.compute_thread.is_current:
                raise RuntimeError(
                    "prefill was called on the device's thread while a pass of prefill is under "
                    "way there: compute the rest of its jobs, or close it, first"
                )
            self._prefilling.acquire()
        n_tokens = session.n_tokens
        try:
            for chunk in self.chunks(session, tokens):
                finish(self._device.compute_thread, self._append([chunk]))
        except BaseException:
            session.roll_back(n_tokens)
            raise
        finally:
            self._prefilling.release()

    def _append(self, chunks: Sequence[Chunk]) -> Generator[None, None, None]:
        """As `append`, for a caller that holds the lock."""
        self._require_intact()
        for chunk in chunks:
            if chunk.last or len(chunk.tokens) == 1:  # otherwise the old logits stay
                chunk.session.has_logits = False
                self.builder.expire_top(chunk.session)
        self._in_pass = tuple(chunk.session for chunk in chunks)
        try:
            if len(chunks) > 1:
                yield from self._append_packed(chunks)
            else:
                yield from self._append_one(chunks[0])
        finally:
            self._in_pass = ()
        self._require_intact()
        for chunk in chunks:
            chunk.session.tokens.extend(chunk.tokens.tolist())
            chunk.session.has_logits |= chunk.last
            self.counters.tokens_prefilled += len(chunk.tokens)

    def _append_one(self, chunk: Chunk) -> Generator[None, None, None]:
        session, n = chunk.session, len(chunk.tokens)
        if n == 1:
            if self.always_batches:
                self._compute_batch([Step(session, chunk.tokens.tolist())])
            else:
                self._decode(session, int(chunk.tokens[0]))
            return
        graph = self._prefill_graphs.of(chunk)
        yield from self._jobs.compute(self._backend, graph, n, graph.cuts, session.binding)
        session.fetch(session.n_tokens, n, with_logits=chunk.last)

    def _append_packed(self, chunks: Sequence[Chunk]) -> Generator[None, None, None]:
        memories = dict.fromkeys(chunk.session.binding for chunk in chunks)
        with self._prefill_graphs.packed(chunks) as graph:
            yield from self._jobs.compute(self._backend, graph, graph.n, graph.cuts, *memories)
        for chunk in chunks:
            chunk.session.fetch(chunk.session.n_tokens, len(chunk.tokens), with_logits=True)

    # ------------------------------------------------------------------ decode

    def decode(self, session: Session, token: int) -> None:
        """Appends one token; afterwards the session has the next logits."""
        if self.always_batches:
            self._run(lambda: self._decode_batch([Step(session, [token])]))
            return
        session.require_room(1)
        self._require_intact()
        session.has_logits = False
        self.builder.expire_top(session)
        self._run(lambda: self._decode(session, token))
        self._require_intact()
        session.tokens.append(token)
        session.has_logits = True
        self.counters.tokens_decoded += 1

    def decode_batch(self, steps: Sequence[Step]) -> None:
        """Appends tokens to each of several different sessions, in one pass, or in several if the
        class has no room for all (`use`).

        Afterwards each session has its next logits, or, on an error, none of them has, and each has
        the tokens that it had. The bits are those of single tokens, one after the other, in the
        same class. A call costs least if it has the sessions of the call before, in the same order,
        and a token for each. Raises ContextFull before anything is computed.
        """
        if len(steps) == 1 and len(steps[0].tokens) == 1:
            self.decode(steps[0].session, steps[0].tokens[0])
        else:
            self._run(lambda: self._decode_batch(steps))

    @property
    def can_batch(self) -> bool:
        """Whether steps of several sessions can be one pass."""
        return self._device.everywhere is not None

    def batch_key(self, session: Session) -> object:
        """Sessions with the same key can be in one batch."""
        return self.builder.batch_key(session)

    def forget(self, session: Session) -> None:
        """Keeps nothing of a session that is about to close, and frees its graphs.

        RuntimeError if a pass of prefill over it is under way.
        """
        self._run(lambda: self._forget(session))

    def close(self) -> None:
        """Frees everything; sessions must be closed first."""
        self._batches.close()
        self._decode_inputs.close()
        self._prefill_graphs.close()
        self._decode_memory.close()
        self.builder.finder.close()
        self._backend.close()

    def _run(self, job: Callable[[], _Result]) -> _Result:
        return self._device.compute_thread.run(job)

    def _forget(self, session: Session) -> None:
        if session in self._in_pass:
            raise RuntimeError(
                "a session cannot close while a pass of prefill over it is under way: end the pass"
            )
        self._prefill_graphs.forget(session)
        self._with_graph.pop(session, None)
        if self._masked is not None and self._masked[0] is session:
            self._masked = None
        self._batches.forget(session)
        if session.decode_graph is not None:
            session.decode_graph.close()
            session.decode_graph = None

    def _decode_batch(self, steps: Sequence[Step]) -> None:
        self._require_intact()
        standing = self._compute_batch(steps)
        if standing is None:
            self._decode_in_halves(steps)
            return
        self._batches.end(standing, steps)
        self.counters.tokens_decoded += sum(len(step.tokens) for step in steps)

    def _compute_batch(self, steps: Sequence[Step]) -> Standing | None:
        """Computes one pass; None if it has no room for these steps. Appends no token."""
        standing = self._batches.begin(steps)
        if standing is None:
            return None
        try:
            standing.batch.inputs.buffer.flush()
            self._backend.compute(standing.batch.pointer, *standing.memories)
            self._require_intact()
        except BaseException:
            for step in steps:
                step.session.has_logits = False
            raise
        return standing

    def _decode_in_halves(self, steps: Sequence[Step]) -> None:
        """As `_decode_batch`, in two passes or more."""
        n_before = [step.session.n_tokens for step in steps]
        try:
            if len(steps) > 1:
                middle = len(steps) // 2
                self._decode_batch(steps[:middle])
                self._decode_batch(steps[middle:])
            else:
                self._decode_step_in_halves(steps[0])
        except BaseException:
            for step, n_tokens in zip(steps, n_before, strict=True):
                step.session.truncate(n_tokens)
                step.session.has_logits = False
            raise

    def _decode_step_in_halves(self, step: Step) -> None:
        session, middle = step.session, len(step.tokens) // 2
        self._decode_batch([Step(session, step.tokens[:middle], step.logits)])
        row_nbytes = 4 * session.layout.n_vocab
        session.copy_logits(HostAddr(step.logits + (middle - 1) * row_nbytes))
        self._decode_batch([Step(session, step.tokens[middle:], step.logits + middle * row_nbytes)])

    def _decode(self, session: Session, token: int) -> None:
        position = len(session.tokens)
        masked = self._masked
        again = masked is not None and masked[0] is session
        graph = self._decode_graph(session, position, again=again)
        graph.write_token(token, position)
        if again and masked == (session, graph.n_kv, position):
            graph.extend_masks(position)
        else:
            graph.write_masks(position)
        self._masked = (session, graph.n_kv, position + 1)
        graph.inputs.buffer.flush()
        self._backend.compute(graph.pointer, session.binding)
        session.fetch(position, 1, with_logits=True)

    def _decode_graph(self, session: Session, position: int, *, again: bool) -> Forward:
        """The graph of the session's next token, moved or built if it has to be. `again`: the last
        token that was decoded is the session's as well."""
        n_kv = rows_read(session.layout.n_ctx, position + 1)
        graph, memory = session.decode_graph, self._decode_memory
        if not again:
            self._with_graph.pop(session, None)
            self._with_graph[session] = None
        if graph is not None:
            if graph.generation == memory.generation and graph.inputs is self._decode_inputs:
                if graph.n_kv != n_kv:
                    graph.move(position, n_kv)
                return graph
            graph.close()
            session.decode_graph = None
        if session.n_ctx > self._decode_inputs.n_ctx:
            outgrown = self._decode_inputs
            self._decode_inputs = self.builder.new_inputs(1, session.n_ctx)
            outgrown.close()
        self._masked = None
        self._drop_old_graphs()
        graph = self.builder.forward(session, self._decode_inputs, 1, n_kv, memory, True)
        session.decode_graph = graph
        return graph

    def _drop_old_graphs(self) -> None:
        """A graph takes half a megabyte and a millisecond to build: only some are kept."""
        while len(self._with_graph) > _MOST_GRAPHS:
            session = next(iter(self._with_graph.keys()))
            del self._with_graph[session]
            if session.decode_graph is not None:
                session.decode_graph.close()
                session.decode_graph = None
