"""Runs a model's forward passes: prefill in chunks, decode with a graph that is used again.

A step of decoding reads: find the session's graph, write the token and one mask element, compute.
The graph is built anew when attention must see 256 rows more, which takes about a millisecond.
It is one job of the device's thread from end to end, so steps of all threads share their graphs'
memory and inputs without a lock.

A chunk of prefill has memory of its own and is computed in parts, about a layer each, where the
device can: one job each, between which others decode. One chunk is under way at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from isthmus.config import ModelSettings
from isthmus.counters import Counters
from isthmus.device.base import Device
from isthmus.device.buffer import InputBuffer
from isthmus.device.graph import Graph, GraphAllocator
from isthmus.errors import ModelUnsupported
from isthmus.model.architectures import Architecture
from isthmus.model.batch import Arrangement, Batch, Row, Step
from isthmus.model.batch_probe import adds_exactly, batches_exactly
from isthmus.model.checks import nothing
from isthmus.model.cut_probe import adapter_cuts_exactly, cuts_exactly
from isthmus.model.forward import Forward, Inputs
from isthmus.model.kv_cache import KV_TYPES, N_CTX_MULTIPLE, rows_read
from isthmus.model.pack_probe import packs_exactly
from isthmus.model.packed import Packed, Places
from isthmus.model.parts import Chunk, Job, Turn, at_once, compute_parts
from isthmus.model.session import Session
from isthmus.model.weights import Weights
from isthmus.native._ggml import GgmlType

_Result = TypeVar("_Result")
_MOST_BATCH_GRAPHS = 8
_MOST_GRAPHS = 8
"""Sessions that keep a decode graph, of each model."""
_MOST_PREFILL_GRAPHS = 4


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
        self._architecture = architecture
        self._chunk = settings.prefill_chunk
        self._kv_type = KV_TYPES[settings.kv_type]
        self._backend = device.new_backend(settings.deterministic)
        self._decode_memory = GraphAllocator(device.library, device.buffer_type)
        self._prefill_memory = GraphAllocator(device.library, device.buffer_type)
        self._batch_memory = GraphAllocator(device.library, device.buffer_type)
        self._batches: dict[tuple[tuple[int, ...], object], Batch] = {}
        """By lengths of runs and batch key, the one used last at the end."""
        f16 = self._kv_type == GgmlType.F16  # others may be converted behind the result
        self.joins_sequences = device.joins_sequences and f16 and not settings.exact
        """Whether sessions at equal distances share a kernel of attention; see `batch`."""
        self._window = architecture.hparams.window_tokens
        self._decode_inputs = self._new_inputs(1, N_CTX_MULTIPLE)
        self._prefill_inputs: Inputs | None = None
        self._packed_inputs: InputBuffer | None = None
        self._masked: tuple[Session, int, int] | None = None
        self._with_graph: WeakKeyDictionary[Session, None] = WeakKeyDictionary()
        """The sessions that have a decode graph, the one used last at the end."""
        self._computable: set[object] = set()
        """The kinds of graphs that the device has kernels for."""
        self._prefilling = threading.Lock()
        self._prefill_graphs: dict[tuple[Session, int, bool], Forward] = {}
        """Of the session that was prefilled last, by number of tokens and whether it has logits;
        while `_prefilling`."""
        self.counters = Counters()

    def prefill(
        self,
        session: Session,
        tokens: Sequence[int],
        check: Callable[[], None] = nothing,
        turn: Turn = at_once,
    ) -> None:
        """Appends tokens; afterwards the session has the logits after the last one.

        `check` is called before each job of a chunk and may raise; each chunk is computed in a
        `turn`, the last one maybe with those of others, by `append`. On any error the session's
        tokens are what they were. Raises ContextFull, DeviceFailed.
        """
        session.require_room(len(tokens))
        first = session.n_tokens
        ids = np.asarray(tokens, dtype=np.int32)
        try:
            for start in range(0, len(ids), self._chunk):
                check()
                part = ids[start : start + self._chunk]
                chunk = Chunk(session, part, last=start + len(part) == len(ids))
                alone = partial(self.append, [chunk], check)
                turn(len(part), alone, chunk if chunk.last and len(part) > 1 else None)
        except BaseException:
            del session.tokens[first:]
            raise
        session.has_logits = True
        self.counters.tokens_prefilled += len(ids)

    def append(self, chunks: Sequence[Chunk], check: Callable[[], None], job: Job) -> None:
        """Computes chunks of different sessions in one pass and appends them.

        Several must be the last ones of their prompts, have more than one token, and one
        `batch_key`. The bits are those of one after the other where `packs_exactly`. On any error
        no session has tokens more.
        """
        self._require_intact()
        for chunk in chunks:
            chunk.session.has_logits = chunk.session.has_logits and not chunk.last
        if len(chunks) > 1:
            self._append_packed(chunks, check, job)
        else:
            self._append(chunks[0], check, job)
        self._require_intact()
        for chunk in chunks:
            chunk.session.tokens.extend(chunk.tokens.tolist())

    def decode(self, session: Session, token: int) -> None:
        """Appends one token; afterwards the session has the next logits."""
        session.require_room(1)
        self._require_intact()
        session.has_logits = False
        self._run(lambda: self._decode(session, token))
        self._require_intact()
        session.tokens.append(token)
        session.has_logits = True
        self.counters.tokens_decoded += 1

    def decode_batch(self, steps: Sequence[Step]) -> None:
        """Appends tokens to each of several different sessions, in one pass.

        Afterwards each session has its next logits, or, on an error, none of them has. The bits
        are those of single tokens, one after the other, where `batches_exactly`.
        """
        for step in steps:
            step.session.require_room(len(step.tokens))
        rows = [row for step in steps for row in step.rows()]
        if len(rows) == 1:
            self.decode(rows[0].session, rows[0].token)
            return
        self._require_intact()
        for step in steps:
            step.session.has_logits = False
        self._run(lambda: self._decode_batch(rows))
        self._require_intact()
        for step in steps:
            step.session.tokens.extend(step.tokens)
            step.session.has_logits = True
        self.counters.tokens_decoded += len(rows)

    def batches_exactly(self, weights: Weights, *adapters: Weights) -> bool:
        """Whether steps of several sessions can be one pass that has the bits of several."""
        return self.can_batch and self._run(
            lambda: (
                batches_exactly(self._device, self._backend, weights)
                and all(adds_exactly(self._device, self._backend, it) for it in adapters)
            )
        )

    def cuts_exactly(self, weights: Weights, *adapters: Weights) -> bool:
        """Whether it changes no bit where a prefill of 2 to 63 tokens is cut; see `cut_probe`."""
        hparams = self._architecture.hparams
        return self._run(
            lambda: (
                cuts_exactly(self._device, self._backend, weights, hparams, self._kv_type)
                and all(adapter_cuts_exactly(self._device, self._backend, it) for it in adapters)
            )
        )

    def packs_exactly(self, weights: Weights, *adapters: Weights) -> bool:
        """Whether prompts of several sessions in one pass have the bits of one after the other."""
        n_vocab = self._architecture.n_vocab
        return self._run(
            lambda: (
                packs_exactly(self._device, self._backend, weights, n_vocab)
                and all(
                    packs_exactly(self._device, self._backend, it, n_vocab, with_vectors=True)
                    for it in adapters
                )
            )
        )

    @property
    def can_batch(self) -> bool:
        """Whether steps of several sessions can be one pass."""
        return self._device.everywhere is not None

    def batch_key(self, session: Session) -> object:
        """Sessions with the same key can be in one batch."""
        rope = self._architecture.hparams.rope
        return session.n_ctx > rope.n_ctx_original

    def forget(self, session: Session) -> None:
        """Keeps nothing of a session that is about to close, and frees its graph."""
        with self._prefilling:
            self._drop_prefill_graphs(session)
        self._run(lambda: self._forget(session))

    def _run(self, job: Callable[[], _Result]) -> _Result:
        return self._device.compute_thread.run(job)

    def _forget(self, session: Session) -> None:
        self._with_graph.pop(session, None)
        for batch in self._batches.values():
            batch.forget(session)
        if session.decode_graph is not None:
            session.decode_graph.close()
            session.decode_graph = None

    def _decode_batch(self, unordered: list[Row]) -> None:
        arranged = Arrangement.of(unordered, join=self.joins_sequences)
        rows, batch = arranged.rows, self._batch(arranged)
        batch.write(rows)
        memories = dict.fromkeys(row.session.binding for row in rows)
        batch.inputs.buffer.flush()
        self._backend.compute(batch.pointer, *memories)

    def _batch(self, arranged: Arrangement) -> Batch:
        """The graph for such runs, built where there is none or it is too small."""
        rows, runs = arranged.rows, arranged.runs
        n_ctx, one = max(row.session.n_ctx for row in rows), rows[0].session
        key = (runs, self.batch_key(one))
        batch = self._batches.pop(key, None)
        stale = batch is not None and (
            batch.inputs.n_ctx < n_ctx or batch.generation != self._batch_memory.generation
        )
        if batch is not None and stale:
            batch.close()
            batch = None
        if batch is None:
            batch = Batch(self._device, self._architecture.hparams, one.layout, runs, n_ctx)
            batch.inputs.buffer.order_with(self._backend.handle)
            batch.place_logits(self._architecture.build(batch))
            self._require_kernels(batch, ("batch", max(runs) > 1))
            self._batch_memory.allocate(batch)
            batch.changed()
            batch.generation = self._batch_memory.generation
            self.counters.graphs_built += 1
        self._batches[key] = batch
        while len(self._batches) > _MOST_BATCH_GRAPHS:
            self._batches.pop(next(iter(self._batches))).close()
        return batch

    def close(self) -> None:
        """Frees everything; sessions must be closed first."""
        for batch in self._batches.values():
            batch.close()
        self._decode_inputs.close()
        self._drop_prefill_graphs()
        if self._prefill_inputs is not None:
            self._prefill_inputs.close()
        if self._packed_inputs is not None:
            self._packed_inputs.close()
        self._batch_memory.close()
        self._decode_memory.close()
        self._prefill_memory.close()
        self._backend.close()

    def _append(self, chunk: Chunk, check: Callable[[], None], job: Job) -> None:
        session, tokens = chunk.session, chunk.tokens
        if len(tokens) == 1:
            self._run(lambda: self._decode(session, int(tokens[0])))
            return
        with self._prefilling:
            graph = self._prefill_graph(session, tokens, chunk.last)
            graph.inputs.buffer.flush()
            compute_parts(self._backend, graph, graph.cuts, check, job, session.binding)
            session.fetch(session.n_tokens, len(tokens), with_logits=chunk.last)

    def _append_packed(self, chunks: Sequence[Chunk], check: Callable[[], None], job: Job) -> None:
        places = Places(self._architecture.hparams, chunks)
        memories = dict.fromkeys(chunk.session.binding for chunk in chunks)
        with self._prefilling:
            with self._packed(places) as graph:
                compute_parts(self._backend, graph, graph.cuts, check, job, *memories)
            for chunk in chunks:
                chunk.session.fetch(chunk.session.n_tokens, len(chunk.tokens), with_logits=True)

    def _packed(self, places: Places) -> Packed:
        inputs = self._packed_inputs
        if inputs is None or inputs.nbytes < places.nbytes:
            if inputs is not None:
                inputs.close()
            self._packed_inputs = None  # where there is no memory for a larger one
            inputs = self._packed_inputs = self._device.allocate_inputs(places.nbytes)
        graph = Packed(self._device, self._architecture.hparams, places, inputs)
        graph.place_logits(self._architecture.build(graph))
        self._require_kernels(graph, "packed")
        self._prefill_memory.allocate(graph)
        graph.changed()
        self.counters.graphs_built += 1
        return graph

    def _decode(self, session: Session, token: int) -> None:
        position = session.n_tokens
        graph = self._decode_graph(session, position)
        graph.write_token(token, position)
        if self._masked == (session, graph.n_kv, position):
            graph.extend_masks(position)
        else:
            graph.write_masks(position)
        self._masked = (session, graph.n_kv, position + 1)
        graph.inputs.buffer.flush()
        self._backend.compute(graph.pointer, session.binding)
        session.fetch(position, 1, with_logits=True)

    def _decode_graph(self, session: Session, position: int) -> Forward:
        n_kv = rows_read(session.n_ctx, position + 1)
        graph = session.decode_graph
        self._with_graph.pop(session, None)
        self._with_graph[session] = None
        generation = self._decode_memory.generation
        if graph is not None and (graph.generation, graph.inputs) == (
            generation,
            self._decode_inputs,
        ):
            if graph.n_kv != n_kv:
                graph.move(position, n_kv)
            return graph
        if graph is not None:
            graph.close()
            session.decode_graph = None
        if session.n_ctx > self._decode_inputs.n_ctx:
            self._decode_inputs.close()
            self._decode_inputs = self._new_inputs(1, session.n_ctx)
        self._masked = None
        self._drop_old_graphs()
        graph = self._build(session, self._decode_inputs, 1, n_kv, self._decode_memory, True)
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

    def _prefill_graph(self, session: Session, chunk: np.ndarray, last: bool) -> Forward:
        """A chunk's graph with its inputs written; that of an earlier chunk of the same length."""
        first, n = session.n_tokens, len(chunk)
        inputs = self._inputs_for_prefill(session)
        n_kv = rows_read(session.n_ctx, first + n)
        graph = self._prefill_graphs.get((session, n, last))
        if graph is not None and graph.generation == self._prefill_memory.generation:
            graph.move(first, n_kv)
        else:
            self._keep_prefill_graphs_of(session)
            graph = self._build(session, inputs, n, n_kv, self._prefill_memory, last)
            self._prefill_graphs[session, n, last] = graph
        graph.write_tokens(chunk, first)
        graph.write_masks(first)
        return graph

    def _keep_prefill_graphs_of(self, session: Session) -> None:
        """Makes room for one more, and drops those of others."""
        kept = [key for key in self._prefill_graphs if key[0] is session]
        stale = {*self._prefill_graphs} - {*kept[-_MOST_PREFILL_GRAPHS + 1 :]}
        for key in stale:
            self._prefill_graphs.pop(key).close()

    def _drop_prefill_graphs(self, session: Session | None = None) -> None:
        """Those of one session, or all."""
        for key in [key for key in self._prefill_graphs if session in (None, key[0])]:
            self._prefill_graphs.pop(key).close()

    def _inputs_for_prefill(self, session: Session) -> Inputs:
        inputs = self._prefill_inputs
        if inputs is None or inputs.n_ctx < session.n_ctx:
            if inputs is not None:
                self._drop_prefill_graphs()
                inputs.close()
            inputs = self._prefill_inputs = self._new_inputs(self._chunk, session.n_ctx)
            if self._device.has_own_memory:
                n_kv = rows_read(session.n_ctx, session.n_tokens + self._chunk)
                self._build(session, inputs, self._chunk, n_kv, self._prefill_memory, True).close()
                # its memory is taken once, large enough, and need not move later
        return inputs

    def _new_inputs(self, n_tokens: int, n_ctx: int) -> Inputs:
        inputs = Inputs(self._device, n_tokens, n_ctx, self._window)
        inputs.buffer.order_with(self._backend.handle)
        return inputs

    def _build(
        self,
        session: Session,
        inputs: Inputs,
        n: int,
        n_kv: int,
        memory: GraphAllocator,
        with_logits: bool,
    ) -> Forward:
        graph = Forward(session, inputs, n, n_kv)
        logits = self._architecture.build(graph)
        if with_logits:  # otherwise only what the KV cache needs becomes part of the graph
            graph.place_logits(logits)
        self._require_kernels(graph, n > 1)
        memory.allocate(graph)
        graph.generation = memory.generation
        graph.changed()
        self.counters.graphs_built += 1
        return graph

    def _require_kernels(self, graph: Graph, kind: object) -> None:
        """Looks once for each kind of graph whether the device has kernels for all of it."""
        if kind not in self._computable:
            if missing := self._device.refuses(graph):
                graph.close()
                raise ModelUnsupported(
                    f"the device {self._device.name} has no kernel for {missing} with this model's "
                    "types and shapes; use another KV type, quantisation or device"
                )
            self._computable.add(kind)
