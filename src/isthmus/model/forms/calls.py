"""A way to write calls of tools: what every one of them says of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod

from isthmus.model.forms.lark import Lark, WantedCalls
from isthmus.model.forms.out import Out
from isthmus.model.forms.tape import Reading, Tape


class Calls(ABC):
    """A notation of calls. Frozen: one object serves all answers."""

    @property
    @abstractmethod
    def begins(self) -> tuple[str, ...]:
        """Markers, any of which begins a block of calls wherever it is in a text."""

    @property
    def markers(self) -> tuple[str, ...]:
        """All texts of the notation that a vocabulary may have as control tokens."""
        return self.begins

    @property
    def bare(self) -> str:
        """Characters that may begin a block at the beginning of an answer, without a marker."""
        return ""

    @property
    def quotes_names(self) -> bool:
        """Whether names may have any character."""
        return False

    @property
    def thinks(self) -> bool:
        """Whether a block may be a thought, too."""
        return False

    @abstractmethod
    def read(self, tape: Tape, out: Out) -> Reading[None]:
        """Reads one block, whose beginning was marked and is not read yet, and says what is in it.

        Stops where it is over, or is none: the rest is text.
        """

    @abstractmethod
    def grammar(self, lark: Lark, wanted: WantedCalls) -> str | None:
        """The expression of an answer with the wanted calls; None if no grammar says it."""
