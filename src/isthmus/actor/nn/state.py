"""What a guest has opened by wasi-nn, as it is kept between two messages.

Sessions and grammars lie among the actor's handles, as all others; here are their numbers.
"""

from __future__ import annotations

import msgspec

from isthmus.actor.nn.settings import NnSettings
from isthmus.actor.nn.spans import Span


class Graph(msgspec.Struct, frozen=True):
    """A model that a guest has loaded, and how contexts of it begin."""

    model: str
    """The name under which the actor was given it."""
    settings: NnSettings


class NnContext(msgspec.Struct):
    """One conversation with a graph: a session, or none if it makes embeddings."""

    graph: int
    model: str
    settings: NnSettings
    session: int = 0
    """Handle of the session; 0 if there is none."""
    span: Span | None = None
    """Where the session lies."""
    prompt: list[int] | None = None
    """Token ids of the input."""
    output: bytes = b""
    output_ids: list[int] = []
    last: bytes = b""
    """Text of the last token."""
    random_state: int = 0
    grammar: int = 0
    """Handle of the grammar that the output follows; 0 if there is none."""
    is_streaming: bool = False
    """Whether `compute_single` goes on behind the last token."""

    def add(self, token: int, text: bytes) -> None:
        """Appends a token to the output."""
        self.output_ids.append(token)
        self.output += text
        self.last = text

    def forget_output(self) -> None:
        """Leaves the input alone."""
        self.output, self.output_ids, self.last = b"", [], b""
        self.is_streaming = False


class NnState(msgspec.Struct):
    """See the module. Numbers count up from 0 and are never used again."""

    graphs: dict[int, Graph] = {}
    contexts: dict[int, NnContext] = {}
    """Those that can be read; the ones whose graph was unloaded cannot compute any more."""
    n_graphs: int = 0
    n_contexts: int = 0
    free: tuple[Span, ...] = ()
    """Memory that the host took for sessions, and that none has now."""
