"""Graphs of prefill, which compute a chunk of one session or the last chunks of several.

The graphs of the session that was prefilled last are kept: a chunk of the same length uses the
graph of the one before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from isthmus.device.buffer import InputBuffer
from isthmus.model.own.kv_cache import rows_read
from isthmus.model.passes.forward import Forward
from isthmus.model.passes.forward_inputs import ForwardInputs
from isthmus.model.passes.graph_builder import GraphBuilder
from isthmus.model.passes.graph_cache import GraphCache
from isthmus.model.passes.packed import Packed, PackedLayout
from isthmus.model.session import Session
from isthmus.model.step import Chunk

_MAX_GRAPHS = 4
"""Graphs that are kept, each of another length. A graph takes half a megabyte."""


class PrefillGraphs:
    """Owns the memory, the inputs and the graphs of prefill. One pass at a time uses them."""

    def __init__(self, builder: GraphBuilder, n_chunk: int) -> None:
        """`n_chunk`: the most tokens that one chunk has."""
        self._builder = builder
        self._n_chunk = n_chunk
        self._cache: GraphCache[tuple[Session, int, bool], Forward]
        self._cache = GraphCache(builder.device, _MAX_GRAPHS)
        """By session, number of tokens and whether it computes logits, all of one session."""
        self._inputs: ForwardInputs | None = None
        self._packed_inputs: InputBuffer | None = None

    def of(self, chunk: Chunk) -> Forward:
        """The graph of one session's chunk, with its inputs written."""
        session, n = chunk.session, len(chunk.tokens)
        first = session.n_tokens
        inputs = self._inputs_for(session)
        n_kv = rows_read(session.n_ctx, first + n)
        key = (session, n, chunk.last)
        graph = self._cache.try_get(key)
        if graph is not None:
            graph.move(first, n_kv)
        else:
            self._cache.free(lambda it: it[0] is not session)
            graph = self._builder.forward(session, inputs, n, n_kv, self._cache, chunk.last)
            self._cache.put(key, graph)
        graph.write_tokens(chunk.tokens, first)
        graph.write_masks(first)
        inputs.buffer.flush()
        return graph

    def embedded(self, chunk: Chunk) -> Forward:
        """A graph of a chunk of embeddings, with its inputs written; the caller closes it."""
        session = chunk.session
        graph = self._builder.embedded(chunk, self._inputs_for(session), self._cache)
        graph.write_tokens(np.zeros_like(chunk.tokens), session.n_tokens)
        graph.write_masks(session.n_tokens)
        graph.inputs.buffer.flush()
        return graph

    def packed(self, chunks: Sequence[Chunk]) -> Packed:
        """A graph of chunks of several sessions, with its inputs written; the caller closes it."""
        builder = self._builder
        layout = PackedLayout(builder.hparams, chunks, builder.n_outputs)
        inputs = self._packed_inputs
        if inputs is None or inputs.nbytes < layout.nbytes:
            if inputs is not None:
                inputs.close()
            self._packed_inputs = None  # if there is no memory for larger ones
            inputs = self._packed_inputs = builder.device.allocate_inputs(layout.nbytes)
        graph = Packed(builder.device, builder.hparams, layout, inputs)
        logits = builder.architecture.build(graph)
        graph.place_logits(logits)
        tops = [builder.top_of(chunk.session) for chunk in chunks]
        graph.find_tops(logits, builder.finder, tops)
        builder.place(graph, "packed", self._cache)
        return graph

    def forget(self, session: Session) -> None:
        """Closes the graphs of a session that is about to close."""
        self._cache.free(lambda it: it[0] is session)

    def close(self) -> None:
        """Frees everything."""
        self._cache.close()
        for owned in (self._inputs, self._packed_inputs):
            if owned is not None:
                owned.close()

    def _inputs_for(self, session: Session) -> ForwardInputs:
        """Inputs that are large enough for any chunk of a session."""
        inputs = self._inputs
        if inputs is None or inputs.n_ctx < session.n_ctx:
            if inputs is not None:
                self._cache.outdate()
                inputs.close()
                self._inputs = None
            inputs = self._inputs = self._builder.new_inputs(self._n_chunk, session.n_ctx)
            if self._builder.device.has_own_memory:
                self._take_memory(session, inputs)
        return inputs

    def _take_memory(self, session: Session, inputs: ForwardInputs) -> None:
        """Takes the memory of the largest chunk, so that it need not move later."""
        n_kv = rows_read(session.n_ctx, session.n_tokens + self._n_chunk)
        self._builder.forward(session, inputs, self._n_chunk, n_kv, self._cache, True).close()
