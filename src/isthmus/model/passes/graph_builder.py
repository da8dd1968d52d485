"""Builds the graphs of one model: has its architecture write them down, and places them."""

from __future__ import annotations

from typing import Any

from isthmus.counters import Counters
from isthmus.device.base import Backend, Device
from isthmus.errors import ModelUnsupported
from isthmus.model.architectures import Architecture
from isthmus.model.own.kv_cache import rows_read
from isthmus.model.own.session import own
from isthmus.model.passes.forward import Forward, Pass
from isthmus.model.passes.forward_inputs import ForwardInputs
from isthmus.model.passes.graph_cache import GraphCache
from isthmus.model.sampling.top import Top, TopFinder
from isthmus.model.session import Session
from isthmus.model.step import Chunk


class GraphBuilder:
    """The parts of a graph that do not depend on what it computes: kernels, memory, counts."""

    def __init__(self, device: Device, architecture: Architecture, backend: Backend) -> None:
        """`backend` computes the graphs; inputs are sent in its order."""
        self.device = device
        self.architecture = architecture
        self.hparams = architecture.hparams
        self.backend = backend
        self.counters = Counters()
        self.finder = TopFinder(device, architecture.n_vocab)
        self.n_outputs = 1
        """Columns that a prompt's last one is repeated to, so that what comes after the last
        attention is of the model's class."""
        self._computable: set[object] = set()
        """The kinds of graphs that the device has kernels for."""

    def batch_key(self, session: Session) -> object:
        """Sessions with the same key can be in one batch."""
        return session.n_ctx > self.hparams.rope.n_ctx_original

    def top_of(self, session: Session) -> Top | None:
        """Where the session's candidates go; None if it asks for none, or guests are quicker."""
        return session.top if session.top is not None and self.finder.can_find else None

    def expire_top(self, session: Session) -> None:
        """To be called before a pass: candidates of an earlier one, found on another device before
        the session was restored, are those of the next logits no longer."""
        if session.top is not None and not self.finder.can_find:
            session.top.expire()

    def new_inputs(self, n_tokens: int, n_ctx: int) -> ForwardInputs:
        """Inputs for passes over up to `n_tokens` tokens of one session with `n_ctx` rows."""
        n_outputs, window = self.n_outputs, self.hparams.window_tokens
        inputs = ForwardInputs(self.device, n_tokens, n_ctx, window, n_outputs)
        inputs.buffer.order_with(self.backend.handle)
        return inputs

    def forward(
        self,
        session: Session,
        inputs: ForwardInputs,
        n: int,
        n_kv: int,
        cache: GraphCache[Any, Any],
        with_logits: bool,
    ) -> Forward:
        """A pass over `n` tokens of one session, placed by `cache`; see `place`."""
        graph = Forward(own(session), inputs, n, n_kv)
        self._complete(graph, n > 1, cache, with_logits)
        return graph

    def embedded(self, chunk: Chunk, inputs: ForwardInputs, cache: GraphCache[Any, Any]) -> Forward:
        """A pass over embeddings of one session, placed by `cache`; see `place`."""
        session, n = own(chunk.session), len(chunk.tokens)
        n_kv = rows_read(session.n_ctx, session.n_tokens + n)
        graph = Forward(session, inputs, n, n_kv, chunk.embeddings)
        self._complete(graph, (n > 1, "embedded"), cache, chunk.last)
        return graph

    def _complete(
        self, graph: Forward, kind: object, cache: GraphCache[Any, Any], with_logits: bool
    ) -> None:
        """Has the architecture write the graph down, and places it."""
        session = graph.session
        logits = self.architecture.build(graph)
        if with_logits:  # otherwise only what the KV cache needs becomes part of the graph
            graph.place_logits(logits)
            if (top := self.top_of(session)) is not None:
                candidates = self.finder.find(graph, graph.column(logits, 0), 1, top.k)
                graph.place_top(candidates, session, top)
        self.place(graph, kind, cache)

    def place(self, graph: Pass, kind: object, cache: GraphCache[Any, Any]) -> None:
        """Has `cache` place the intermediate results of a complete graph.

        Looks once for each `kind` of graph whether the device has kernels for all of it, and raises
        ModelUnsupported if not. Raises DeviceFailed too. After an error the graph is closed.
        """
        if kind not in self._computable:
            if missing := self.device.refuses(graph):
                graph.close()
                raise ModelUnsupported(
                    f"the device {self.device.name} has no kernel for {missing} with this model's "
                    "types and shapes; use another KV type, quantisation or device"
                )
            self._computable.add(kind)
        try:
            cache.allocate(graph)
        except BaseException:
            graph.close()
            raise
        graph.changed()
        self.counters.graphs_built += 1
