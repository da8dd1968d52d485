"""Graphs that decode a single token of one session.

A step reads: find the session's graph, write the token and one mask element, compute. A graph is
moved when attention must see 256 rows more: only lengths are written.
"""

from __future__ import annotations

from isthmus.model.own.kv_cache import N_CTX_MULTIPLE, rows_read
from isthmus.model.passes.forward import Forward
from isthmus.model.passes.graph_builder import GraphBuilder
from isthmus.model.passes.graph_cache import GraphCache
from isthmus.model.session import Session

_MAX_GRAPHS = 8
"""Sessions that keep a graph, of each model: one takes half a megabyte."""


class DecodeGraphs:
    """Owns the memory, the inputs and the graphs of single tokens. One of them runs at a time."""

    def __init__(self, builder: GraphBuilder) -> None:
        self._builder = builder
        self._cache: GraphCache[Session, Forward] = GraphCache(builder.device, _MAX_GRAPHS)
        self._inputs = builder.new_inputs(1, N_CTX_MULTIPLE)
        self._masked: tuple[Session, int, int] | None = None
        """What the inputs' masks were written for: the session, the cache rows that they cover, and
        the position of its next token. That session's graph is the one used last."""

    def of(self, session: Session, token: int) -> Forward:
        """The graph of a session's next token, with its inputs written."""
        position = len(session.tokens)
        n_kv = rows_read(session.n_ctx, position + 1)
        graph = self._graph(session, position, n_kv)
        graph.write_token(token, position)
        if self._masked == (session, n_kv, position):
            graph.extend_masks(position)
        else:
            graph.write_masks(position)
        self._masked = (session, n_kv, position + 1)
        graph.inputs.buffer.flush()
        return graph

    def forget(self, session: Session) -> None:
        """Frees the graph of a session that is about to close."""
        if self._masked is not None and self._masked[0] is session:
            self._masked = None
        self._cache.free(lambda it: it is session)

    def close(self) -> None:
        """Frees everything."""
        self._cache.close()
        self._inputs.close()

    def _graph(self, session: Session, position: int, n_kv: int) -> Forward:
        """The session's graph, moved or built if it has to be."""
        graph = self._cache.try_get(session)
        if graph is not None:
            if graph.n_kv != n_kv:
                graph.move(position, n_kv)
            return graph
        if session.n_ctx > self._inputs.n_ctx:
            self._cache.outdate()
            outgrown = self._inputs
            self._inputs = self._builder.new_inputs(1, session.n_ctx)
            outgrown.close()
        self._masked = None
        graph = self._builder.forward(session, self._inputs, 1, n_kv, self._cache, True)
        self._cache.put(session, graph)
        return graph
