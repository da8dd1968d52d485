"""What comes of a message: a Reply, or the error that the caller gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool that a guest made for a message."""

    name: str
    seconds: float
    nbytes: int
    """Length of its result."""
    error: str = ""
    """What the tool failed with, or the beginning of that; empty if it did not."""


@dataclass(frozen=True)
class Reply:
    """What an actor answered to one message."""

    data: bytes
    """What the guest set as its reply, or else all that it emitted."""
    n_tokens: int
    """Tokens that it prefilled and decoded."""
    seconds: float
    """Wall-clock time from its begin, without the wait for a place."""
    limits_reached: tuple[str, ...] = ()
    """Names of the `Limits` that refused something, though the guest then finished by itself; n_ctx
    where a session had no room for another token."""

    tool_calls: tuple[ToolCall, ...] = ()
    """Tools that the guest called, in this order; the first 256 of them."""

    n_decoded: int = 0
    """Of its tokens, those that were decoded."""

    @property
    def text(self) -> str:
        """The answer as UTF-8; bytes that are none become U+FFFD."""
        return self.data.decode(errors="replace")

    def __str__(self) -> str:
        return self.text

    def _repr_markdown_(self) -> str:
        """The answer as notebooks show it: models write Markdown."""
        return self.text


Piece: TypeAlias = "str | Reply | BaseException"
"""A part of an answer, and at the end what came of it."""
Deliver: TypeAlias = Callable[[Piece], None]
"""Takes an answer's pieces, on the thread that drives all agents: it must not wait for anything."""
