"""What libllama's own graph of a file is; `adopted.vetting` finds it out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

FACTS_N_CTX = 256
"""Tokens of the session that was looked at."""


@dataclass(frozen=True)
class GraphFacts:
    """What a model is to whoever adopts it."""

    keeps_state: bool
    """Whether a session has a state that each token rewrites: no token can be taken back."""
    memories: tuple[int, ...]
    """Bytes of each memory of a session of 256 tokens; empty if there are no sessions."""
    states: tuple[int, ...]
    """Which of the memories, from 0 on, are states: these are no larger in a longer session."""
    n_vocab: int
    """Length of the logits."""

    @property
    def generates(self) -> bool:
        """Whether the model makes text."""
        return bool(self.memories)

    def session_nbytes(self, n_ctx: int) -> int:
        """Bytes of a session's memories and logits, about."""
        each = (
            nbytes if it in self.states else -(-nbytes * n_ctx // FACTS_N_CTX)
            for it, nbytes in enumerate(self.memories)
        )
        return 4 * self.n_vocab + sum(each)

    def as_json(self) -> dict[str, Any]:
        """Its fields, of which `from_json` makes it again."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> GraphFacts:
        """What `as_json` gave. Raises TypeError for anything else."""
        given: dict[str, Any] = {
            key: tuple(it) if isinstance(it, list) else it for key, it in fields.items()
        }
        return cls(**given)
