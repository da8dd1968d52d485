"""A message between two tokens of its answer: all that the host keeps of it.

Beside it there are the guest's memory, where its stack lies, and what the guest has opened.
"""

from __future__ import annotations

from dataclasses import dataclass

from isthmus.actor.reading import ReadState
from isthmus.actor.reply import ToolCall
from isthmus.wasm.pausing import PendingCall


@dataclass(frozen=True)
class Paused:
    """See the module. Counts are those since the message began, wherever that was."""

    pending: PendingCall
    """The host call that is made next."""
    data: bytes
    """What came in."""
    emitted: bytes
    reply: bytes | None
    """What the guest set as its reply so far."""
    n_outputs: int
    output_nbytes: int
    tokens_in: int
    tokens_out: int
    fuel: int
    """Instructions that the guest has run for it; 0 where they are not limited."""
    seconds: float
    """Wall-clock time since its begin."""
    seconds_left: float | None
    """Until its deadline."""
    limits_reached: tuple[tuple[str, int], ...] = ()
    last_limit: str = ""
    last_warning: str = ""
    tool_result: bytes | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    answer: ReadState | None = None
    """How far the answer is that the host reads."""
