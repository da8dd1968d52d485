"""Graphs and contexts of wasi-nn by their numbers, and the sessions of contexts.

=========  =====================================================================================
context    what holds
=========  =====================================================================================
usable     its graph is loaded; it has a session, unless it makes embeddings
readable   its graph was unloaded, and its session closed; what it put out can still be read
gone       it was finalized, or is not among the last _MAX_READABLE of that kind
=========  =====================================================================================
"""

from __future__ import annotations

import contextlib

from isthmus.actor.host_api.context import MAX_HANDLES, Context
from isthmus.actor.host_api.opening import admit_session
from isthmus.actor.nn.fault import NnFault, refused
from isthmus.actor.nn.generation import close_grammar
from isthmus.actor.nn.memory import NnMemory
from isthmus.actor.nn.settings import NnSettings
from isthmus.actor.nn.state import Graph, NnContext, NnState
from isthmus.errors import GuestFault
from isthmus.model import Model, Session
from isthmus.units import GuestPtr
from isthmus.wasm.wasi_nn import NnErrno

_MAX_READABLE = 64
"""Contexts of unloaded graphs whose outputs are kept."""


class Contexts:
    """See the module. One for each actor."""

    def __init__(self, context: Context, memory: NnMemory) -> None:
        self._c = context
        self._memory = memory
        self.state = NnState()

    # ------------------------------------------------------------------ graphs

    def loaded(self, model: str) -> int | None:
        """The number of a model's graph; None if it is not loaded."""
        graphs = self.state.graphs.items()
        return next((number for number, it in graphs if it.model == model), None)

    def add(self, graph: Graph) -> int:
        """The number of a new graph."""
        state = self.state
        number, state.n_graphs = state.n_graphs, state.n_graphs + 1
        state.graphs[number] = graph
        return number

    def unload(self, graph: int) -> None:
        """Closes a graph, and the sessions of its contexts."""
        if graph not in self.state.graphs:
            raise refused()
        del self.state.graphs[graph]
        for opened in self.state.contexts.values():
            if opened.graph == graph:
                self._release(opened)
        self._forget_oldest()

    # ------------------------------------------------------------------ contexts

    def usable(self, number: int) -> NnContext:
        """A context that can compute."""
        opened = self.readable(number)
        if opened.graph not in self.state.graphs:
            raise refused("the context's graph was unloaded")
        return opened

    def readable(self, number: int) -> NnContext:
        """A context whose output can be read."""
        if number not in self.state.contexts:
            raise refused()
        return self.state.contexts[number]

    def open(self, graph: int) -> int:
        """The number of a new context, with a session if its settings want one. Raises NnFault if
        there is no such graph, or too many contexts are open."""
        state = self.state
        if graph not in state.graphs:
            raise refused()
        if len(state.contexts) >= MAX_HANDLES:
            raise NnFault(NnErrno.TOO_LARGE, f"{MAX_HANDLES} contexts are open")
        found = state.graphs[graph]
        opened = NnContext(graph, found.model, found.settings)
        self._acquire(opened)
        number, state.n_contexts = state.n_contexts, state.n_contexts + 1
        state.contexts[number] = opened
        return number

    def change(self, opened: NnContext, settings: NnSettings) -> None:
        """Gives a context other settings, and a session of another size if they want one. If there
        is none, all stays as it was."""
        before = opened.settings
        kept = before.n_ctx == settings.n_ctx and before.embedding == settings.embedding
        opened.settings = settings
        if kept:
            return
        self._release(opened)
        opened.is_streaming = False
        try:
            self._acquire(opened)
        except BaseException:
            opened.settings = before
            self._acquire(opened)
            raise

    def close(self, number: int) -> None:
        """Closes a context."""
        self._release(self.readable(number))
        del self.state.contexts[number]

    # ------------------------------------------------------------------ sessions

    def _acquire(self, opened: NnContext) -> None:
        """Opens a context's session, in memory that no session has or that is new."""
        c = self._c
        model = c.granted.models[opened.model]
        if opened.settings.embedding:
            _require_embeddings(model)
            return
        most = model.hparams.n_ctx_train
        n_ctx = opened.settings.context_size(most)
        if opened.settings.n_ctx > most:
            c.note(f"ctx-size is {opened.settings.n_ctx}: {model.name} takes {most}")
        layout = model.layout(n_ctx)
        admit_session(c, layout)
        span = self._memory.take(layout.nbytes)
        try:
            c.require_no_session(span.ptr, span.nbytes)
            c.require_no_top(span.ptr, span.nbytes)
            session = model.open_session(c.region, c.binding, GuestPtr(span.ptr), layout)
        except BaseException:
            self._memory.give(span)
            raise
        opened.session, opened.span = c.handles.add(session, opened.model), span

    def _release(self, opened: NnContext) -> None:
        """Closes a context's session and grammar, and keeps the memory for others."""
        close_grammar(self._c, opened)
        number, span = opened.session, opened.span
        opened.session, opened.span = 0, None
        if span is None:
            return
        with contextlib.suppress(GuestFault):  # the guest may have closed it by its own handle
            self._c.handles.remove(number, Session).close()
        self._memory.give(span)

    def _forget_oldest(self) -> None:
        state = self.state
        left = [number for number, it in state.contexts.items() if it.graph not in state.graphs]
        for number in left[:-_MAX_READABLE]:
            del state.contexts[number]


def _require_embeddings(model: Model) -> None:
    if not model.embeds:
        raise NnFault(NnErrno.UNSUPPORTED_OPERATION, f"the model {model.name} makes no embeddings")
