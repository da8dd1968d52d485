"""Stop texts: an answer ends before the first of them, in time that grows with the answer alone.

Each stop text has a Seeker, which knows how much of it the answer ends with (Knuth, Morris, Pratt).
So a stop text may be as long as a request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain

from isthmus.server.generation.tokens import Token


class Seeker:
    """Seeks one stop text in a text that comes in pieces."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.n_matched = 0
        """Characters at the end of the text that begin the stop text."""
        self._borders = [-1, 0]
        """For each number of matched characters, how many still match if the next one does not.
        It is as long as the longest match so far."""

    def push(self, text: str) -> int | None:
        """Where the stop text ends in the next piece, in characters; None if it does not."""
        for at, character in enumerate(text, 1):
            self._advance(character)
            if self.n_matched == len(self.stop):
                return at
        return None

    def _advance(self, character: str) -> None:
        stop, n = self.stop, self.n_matched
        while n >= 0 and stop[n] != character:
            n = self._borders[n]
        self.n_matched = n + 1
        if n + 1 == len(self._borders):
            self._borders.append(self._next_border())

    def _next_border(self) -> int:
        """Characters of the longest other beginning of the stop text with which the part of it that
        is matched now ends."""
        stop, last = self.stop, len(self._borders) - 1
        n = self._borders[last]
        while n >= 0 and stop[n] != stop[last]:
            n = self._borders[n]
        return n + 1


class Stops:
    """Holds back tokens that may be the beginning of a stop text, and ends at the first that is."""

    def __init__(self, stops: Iterable[str]) -> None:
        self._seekers = [Seeker(it) for it in stops]
        self._held: deque[list[Token]] = deque()
        """Tokens in their order: each with a text is the last of a list, after those without."""
        self._bare: list[Token] = []
        """Tokens without a text after all of these."""
        self._end = 0
        """Characters of the answer so far."""
        self.found: str | None = None

    def push(self, token: Token) -> list[Token]:
        """What can be told now."""
        begin = self._end
        token = replace(token, start=begin)
        if not self._seekers:
            self._end += len(token.text)
            return [token]
        self._bare.append(token)
        if not token.text:
            return []
        self._end += len(token.text)
        self._held.append(self._bare)
        self._bare = []
        ends = [(it.stop, it.push(token.text)) for it in self._seekers]
        if places := [(begin + at - len(stop), stop) for stop, at in ends if at is not None]:
            at, self.found = min(places)
            return self._until(at)
        return self._before(self._end - max(it.n_matched for it in self._seekers))

    def finish(self, text: str, ending: Iterable[Token] = ()) -> list[Token]:
        """What was held back, at the end, a text that no token completes, and the token that ended
        the answer."""
        told = self.push(Token(-1, text)) if text else []
        if self.found is not None:
            return told
        last = [replace(it, start=self._end) for it in ending]
        return [*told, *chain(*self._held), *self._bare, *last]

    def _before(self, end: int) -> list[Token]:
        """The tokens whose texts end by then."""
        told: list[Token] = []
        while self._held and self._held[0][-1].end <= end:
            told += self._held.popleft()
        return told

    def _until(self, end: int) -> list[Token]:
        """What begins before the stop text; the text of the last may be cut by it."""
        begun = [it for it in chain(*self._held) if it.start < end]
        return [replace(it, text=it.text[: end - it.start]) for it in begun]
