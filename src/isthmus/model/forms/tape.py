"""A text that comes in pieces, read as if it were there.

A reader is a generator: it yields wherever it needs more text than has come, and is resumed after
the next piece. Each character is looked at a bounded number of times: text that was read is never
put together with what comes after it, and what is not read yet is shorter than a marker.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TypeVar

_T = TypeVar("_T")
Reading = Generator[None, None, _T]
"""A reader that waits for text at each yield, and returns what it found."""
SPACES = " \t\r\n"
_SPACE = re.compile(r"[ \t\r\n]*")


class Stops:
    """Texts at which a reader stops; none of them may be the beginning of another."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = tuple(dict.fromkeys(texts))
        self._pattern = re.compile("|".join(map(re.escape, self.texts)) or r"(?!)")
        self._beginnings = {it[:n] for it in self.texts for n in range(1, len(it))}
        self._firsts = {it[0] for it in self.texts}
        self._most = max(map(len, self.texts), default=1) - 1

    def find(self, text: str, at: int) -> tuple[int, str]:
        """Place of the first stop, and the stop. Without one, the place from which on the text may
        be the beginning of a stop, and an empty text."""
        found = self._pattern.search(text, at)
        if found is not None:
            return found.start(), found.group()
        for place in range(max(at, len(text) - self._most), len(text)):
            if text[place] in self._firsts and text[place:] in self._beginnings:
                return place, ""
        return len(text), ""


class Tape:
    """A text in pieces, and how far it was read."""

    def __init__(self) -> None:
        self._text = ""
        """Text that came last, with what was not read before."""
        self._at = 0
        self._n_before = 0
        """Characters that were read of what came before `_text`."""
        self._mark: int | None = None
        self._kept: list[str] = []
        """Text that was read since the mark, up to the beginning of `_text`."""
        self.ended = False
        self.n_looked_at = 0
        """Characters that were copied or searched, which tests compare with those that came."""

    def feed(self, piece: str) -> None:
        """Adds a piece at the end."""
        if self._mark is not None:
            self._kept.append(self._text[self._mark : self._at])
            self._mark = 0
        self._n_before += self._at
        self._text = self._text[self._at :] + piece
        self._at = 0
        self.n_looked_at += len(self._text)

    @property
    def n_read(self) -> int:
        """Characters that were read until now."""
        return self._n_before + self._at

    def mark(self) -> None:
        """Keeps what is read from here on. An older mark stays."""
        if self._mark is None:
            self._mark, self._kept = self._at, []

    def unmark(self) -> str:
        """Removes the mark; returns what was read since."""
        if self._mark is None:
            return ""
        text = "".join([*self._kept, self._text[self._mark : self._at]])
        self._mark, self._kept = None, []
        self.n_looked_at += len(text)
        return text

    def ends_within(self, literals: Sequence[str]) -> bool:
        """Whether the text is over, and what is unread of it may be the beginning of a literal."""
        n_left = len(self._text) - self._at
        if not self.ended or n_left > max(map(len, literals), default=0):
            return False
        return any(it.startswith(self._text[self._at :]) for it in literals)

    def skip_end(self, literals: Sequence[str]) -> None:
        """Reads what is left of a text that is over, if that may be the beginning of a literal."""
        if self.ends_within(literals):
            self._at = len(self._text)

    def peek(self) -> Reading[str]:
        """The next character, which stays unread; empty at the end of the text."""
        while self._at == len(self._text) and not self.ended:
            yield
        return self._text[self._at : self._at + 1]

    def take(self, literal: str) -> Reading[bool]:
        """Whether this literal comes next; it is read then, and nothing is otherwise."""
        while True:
            have = self._text[self._at : self._at + len(literal)]
            if have == literal:
                self._at += len(literal)
                return True
            if self.ended or not literal.startswith(have):
                return False
            yield

    def comes(self, literals: Iterable[str]) -> Reading[str]:
        """The first of these literals that comes next, which stays unread; empty if none does."""
        found = yield from self.take_any(literals)
        self._at -= len(found)
        return found

    def take_any(self, literals: Iterable[str]) -> Reading[str]:
        """The first of these literals that comes next, read; empty if none does."""
        for it in literals:
            if (yield from self.take(it)):
                return it
        return ""

    def run(self, pattern: re.Pattern[str], out: Callable[[str], object]) -> Reading[None]:
        """Reads as many characters as a pattern of the form `[...]*` takes, in pieces to `out`."""
        while True:
            found = pattern.match(self._text, self._at)
            if found is not None and found.end() > self._at:
                self._at = found.end()
                out(found.group())
            if self._at < len(self._text) or self.ended:
                return
            yield

    def spaces(self) -> Reading[None]:
        """Reads white space."""
        yield from self.run(_SPACE, _nowhere)

    def word(self, pattern: re.Pattern[str], most: int) -> Reading[str]:
        """Text that `run` reads, as one; empty if it has more than `most` characters."""
        pieces: list[str] = []
        yield from self.run(pattern, pieces.append)
        text = "".join(pieces)
        return text if len(text) <= most else ""

    def until(self, stops: Stops, out: Callable[[str], object]) -> Reading[str]:
        """Reads text, in pieces to `out`, up to the first of some stops.

        Returns the stop, which stays unread; empty at the end of the text.
        """
        while True:
            place, stop = stops.find(self._text, self._at)
            if self.ended and not stop:
                place = len(self._text)
            if place > self._at:
                piece, self._at = self._text[self._at : place], place
                self.n_looked_at += len(piece)
                out(piece)
            if stop or self.ended:
                return stop
            yield


def _nowhere(_: str) -> None:
    pass
