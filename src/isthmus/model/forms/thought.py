"""A way to write what a model thinks before it answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Thought:
    """Markers around a thought."""

    begins: str
    ends: str
    opening: str = ""
    """Text that opens a thought in a prompt; empty: `begins` and a line break."""
    before_end: str = "\n"
    """Text that models write between a thought and `ends`."""
    between: str = "\n\n"
    """Text that models write between `ends` and an answer."""
    anywhere: bool = False
    """Whether a thought may begin within a text: only if the markers are control tokens, so that
    a user cannot make the model write about them."""

    @property
    def open_text(self) -> str:
        """The text that opens a thought."""
        return self.opening or f"{self.begins}\n"

    @property
    def close_text(self) -> str:
        """The text that closes a thought which is cut short, so that the answer comes next."""
        return f"{self.before_end}{self.ends}{self.between}"
