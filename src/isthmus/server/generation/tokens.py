"""One token of an answer, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Place(Enum):
    """Where a token stands."""

    PROMPT = "prompt"
    """It has no text here. The first one has no logprob."""
    ANSWER = "answer"
    END = "eog"
    """It ended the answer, has no text, and is told only with its logprob."""


@dataclass(frozen=True)
class Token:
    """One token of an answer."""

    id: int
    """-1 for text that is left when the answer ends."""
    text: str
    """What became complete with it; a character's last token completes it."""
    logprob: float | None = None
    top: tuple[tuple[int, float | None], ...] = ()
    start: int = 0
    """Characters of the answer that are complete before it."""
    place: Place = Place.ANSWER

    @property
    def is_new(self) -> bool:
        """Whether the model has made it."""
        return self.id >= 0 and self.place is Place.ANSWER

    @property
    def end(self) -> int:
        """Characters of the answer that are complete with it."""
        return self.start + len(self.text)
