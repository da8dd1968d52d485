"""What an actor has used."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from isthmus.actor.message import Message


@dataclass
class Usage:
    """Totals since the actor was spawned, restored or forked in this process, and what it has now.

    `Actor.usage` gives a copy.
    """

    messages: int = 0
    """Messages that were handled, failed ones too."""
    tokens_in: int = 0
    """Tokens prefilled."""
    tokens_out: int = 0
    """Tokens decoded."""
    output_nbytes: int = 0
    """Bytes emitted, replied and logged."""
    fuel: int = 0
    """Wasm instructions, about, that its guest ran for messages; 0 where they are not limited."""
    seconds: float = 0.0
    """Wall-clock time of its messages."""
    limits_reached: Counter[str] = field(default_factory=Counter)
    """How often each of its `Limits` refused something or ended a message, by name."""
    evictions: int = 0
    """Times that its memory was saved to a file and given back."""
    undone: int = 0
    """Messages that failed and were undone."""
    memory_nbytes: int = 0
    """Linear memory now; 0 where it is evicted or closed."""
    kv_nbytes: int = 0
    """KV caches of its open sessions now."""
    sessions: int = 0
    """Open sessions now."""

    def now(self, memory_nbytes: int, kv_nbytes: int, sessions: int) -> Usage:
        """A copy, with what it has now."""
        return replace(
            self,
            limits_reached=Counter(self.limits_reached),
            memory_nbytes=memory_nbytes,
            kv_nbytes=kv_nbytes,
            sessions=sessions,
        )

    def charge(self, message: Message) -> None:
        """Adds what a message, or the actor's beginning, has used since it was begun or resumed."""
        had = message.inherited
        self.tokens_in += message.tokens_in - (had.tokens_in if had else 0)
        self.tokens_out += message.tokens_out - (had.tokens_out if had else 0)
        self.output_nbytes += message.output_nbytes - (had.output_nbytes if had else 0)
        self.fuel += message.fuel - (had.fuel if had else 0)
        self.limits_reached.update(message.limits_reached)
        self.limits_reached.subtract(dict(had.limits_reached) if had else {})
