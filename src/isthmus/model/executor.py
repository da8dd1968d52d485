"""Runs a model's forward passes: prefill in chunks, decode with a graph that is used again.

A step of decoding reads: find the session's graph, write the token and one mask element, compute.
The graph is built anew when attention must see 256 rows more, which takes about a millisecond.

Graphs of one model share the memory for intermediate results and inputs, so one pass runs at a
time; `lock` is held for one decode step or one prefill chunk, never longer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import numpy as np

from isthmus.config import ModelSettings
from isthmus.counters import Counters
from isthmus.device.base import Device
from isthmus.device.graph import GraphAllocator
from isthmus.model.architectures import Architecture
from isthmus.model.forward import Forward, Inputs
from isthmus.model.kv_cache import N_CTX_MULTIPLE
from isthmus.model.session import Session
from isthmus.units import align_up

_MOST_GRAPHS = 8
"""Sessions that keep a decode graph, of each model."""


def _nothing() -> None:
    pass


class Executor:
    """Owns a backend, and the memory that its graphs share."""

    def __init__(self, device: Device, architecture: Architecture, settings: ModelSettings) -> None:
        self._device = device
        self._architecture = architecture
        self._chunk = settings.prefill_chunk
        self._backend = device.new_backend(settings.deterministic)
        self._decode_memory = GraphAllocator(device.library, device.buffer_type)
        self._prefill_memory = GraphAllocator(device.library, device.buffer_type)
        self._decode_inputs = Inputs(device, 1, N_CTX_MULTIPLE)
        self._prefill_inputs: Inputs | None = None
        self._inputs_generation = 0
        self._masked: tuple[Session, int, int] | None = None
        self._with_graph: WeakKeyDictionary[Session, None] = WeakKeyDictionary()
        """The sessions that have a decode graph, the one used last at the end."""
        self.lock = threading.Lock()
        self.counters = Counters()

    def prefill(
        self,
        session: Session,
        tokens: Sequence[int],
        check: Callable[[], None] = _nothing,
    ) -> None:
        """Appends tokens; afterwards the session has the logits after the last one.

        `check` is called before each chunk and may raise. On any error the session's tokens are
        what they were. Raises ContextFull, DeviceFailed.
        """
        session.require_room(len(tokens))
        first, had_logits = session.n_tokens, session.has_logits
        ids = np.asarray(tokens, dtype=np.int32)
        try:
            for start in range(0, len(ids), self._chunk):
                check()
                chunk = ids[start : start + self._chunk]
                last = start + len(chunk) == len(ids)
                session.has_logits = had_logits and not last
                self._append(session, chunk, last)
                session.tokens.extend(chunk.tolist())
        except BaseException:
            del session.tokens[first:]
            raise
        session.has_logits = True
        self.counters.tokens_prefilled += len(ids)

    def decode(self, session: Session, token: int) -> None:
        """Appends one token; afterwards the session has the next logits."""
        session.require_room(1)
        session.has_logits = False
        with self.lock:
            self._decode(session, token)
        session.tokens.append(token)
        session.has_logits = True
        self.counters.tokens_decoded += 1

    def close(self) -> None:
        """Frees everything; sessions must be closed first."""
        self._decode_inputs.close()
        if self._prefill_inputs is not None:
            self._prefill_inputs.close()
        self._decode_memory.close()
        self._prefill_memory.close()
        self._backend.close()

    def _append(self, session: Session, chunk: np.ndarray, last: bool) -> None:
        with self.lock:
            if len(chunk) == 1:
                self._decode(session, int(chunk[0]))
            else:
                self._prefill(session, chunk, last)

    def _decode(self, session: Session, token: int) -> None:
        position = session.n_tokens
        graph = self._decode_graph(session, position)
        graph.write_token(token, position)
        if self._masked == (session, graph.n_kv, position):
            graph.extend_mask(position)
        else:
            graph.write_mask(position)
        self._masked = (session, graph.n_kv, position + 1)
        self._backend.compute(graph.pointer)

    def _decode_graph(self, session: Session, position: int) -> Forward:
        n_kv = self._n_kv(session, position + 1)
        graph = session.decode_graph
        self._with_graph.pop(session, None)
        self._with_graph[session] = None
        stamp = (self._decode_memory.generation, self._inputs_generation)
        if graph is not None and graph.n_kv == n_kv and graph.stamp == stamp:
            return graph
        if graph is not None:
            graph.close()
            session.decode_graph = None
        if session.n_ctx > self._decode_inputs.n_ctx:
            self._decode_inputs.close()
            self._decode_inputs = Inputs(self._device, 1, session.n_ctx)
            self._inputs_generation += 1
        self._masked = None
        self._drop_old_graphs()
        graph = self._build(session, self._decode_inputs, 1, n_kv, self._decode_memory, True)
        graph.stamp = (self._decode_memory.generation, self._inputs_generation)
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

    def _prefill(self, session: Session, chunk: np.ndarray, last: bool) -> None:
        first, n = session.n_tokens, len(chunk)
        inputs = self._inputs_for_prefill(session.n_ctx)
        n_kv = self._n_kv(session, first + n)
        graph = self._build(session, inputs, n, n_kv, self._prefill_memory, last)
        with graph:
            graph.write_tokens(chunk, first)
            graph.write_mask(first)
            self._backend.compute(graph.pointer)

    def _inputs_for_prefill(self, n_ctx: int) -> Inputs:
        inputs = self._prefill_inputs
        if inputs is None or inputs.n_ctx < n_ctx:
            if inputs is not None:
                inputs.close()
            inputs = self._prefill_inputs = Inputs(self._device, self._chunk, n_ctx)
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
        memory.allocate(graph)
        self.counters.graphs_built += 1
        return graph

    @staticmethod
    def _n_kv(session: Session, n_tokens: int) -> int:
        return min(align_up(n_tokens, N_CTX_MULTIPLE), session.n_ctx)
