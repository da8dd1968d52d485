"""Where the special tokens of a vocabulary are in a text, found in one pass.

libllama looks for them one after the other, the longest first, and counts its list of pieces anew
for each that it finds: the time grows with the square of their number, in one call that nothing can
end. Here the same cuts take time that grows with the text alone, and each piece between them is
tokenized by itself.

libllama's order among special tokens of equal length is not known, so a text in which two of those
overlap may be cut in another way.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from isthmus.model.checks import nothing

_PREFIX_NBYTES = 4
"""Of special tokens, by which those are found that may be in a text: few have another beginning
than `<|im`, `<unu` and the like."""
_CHECKED = 4096
"""Places that are looked at between two checks: some milliseconds."""
_SPACES = b" \t\n\v\f\r"


@dataclass(frozen=True)
class Special:
    """A token that is found in a text before anything else."""

    token: int
    text: bytes
    """At least one byte."""
    control: bool
    """Whether it is one only where control tokens are read."""
    masked: bool = False
    """Whether libllama takes it for one that users may write: those of some models, `<|channel|>`
    among them, are put among these so that they are shown."""
    strips_left: bool = False
    strips_right: bool = False
    """Whether it takes away the white space beside it."""


class Specials:
    """Some special tokens, prepared to be found."""

    def __init__(self, specials: Iterable[Special]) -> None:
        specials = list(specials)
        self.texts = [it.text for it in specials]
        self._known: dict[bytes, dict[int, dict[bytes, Special]]] = {}
        """By prefix, then by length, the longest first, then by text."""
        for it in sorted(specials, key=lambda it: -len(it.text)):
            of_length = self._known.setdefault(it.text[:_PREFIX_NBYTES], {})
            of_length.setdefault(len(it.text), {})[it.text] = it

    def cut(self, data: bytes, check: Callable[[], None]) -> list[int | bytes]:
        """The text in order: ids of special tokens, and what is between them, never empty.

        `check` is called every few milliseconds, and may raise.
        """
        waiting = [found for prefix in self._known for found in self._at(prefix, data, check)]
        if not waiting:
            return [data] if data else []
        heapq.heapify(waiting)
        cutting, n = _Cutting(data), 0
        while waiting:
            minus_length, at, special = heapq.heappop(waiting)
            if not cutting.take(at, special) and not cutting.taken[at]:
                shorter = self._longest(data, at, -minus_length - 1, special.text[:_PREFIX_NBYTES])
                if shorter is not None:
                    heapq.heappush(waiting, (-len(shorter.text), at, shorter))
            n += 1
            if n % _CHECKED == 0:
                check()
        return cutting.pieces()

    def parted(self, data: bytes) -> Iterator[bytes]:
        """The text, cut inside each of the tokens in it, behind its first character."""
        begin = 0
        places = {at for prefix in self._known for _, at, _ in self._at(prefix, data, nothing)}
        for at in sorted(places):
            end = at + 1
            while end < len(data) and data[end] & 0xC0 == 0x80:
                end += 1
            yield data[begin:end]
            begin = end
        if begin < len(data):
            yield data[begin:]

    def _at(
        self, prefix: bytes, data: bytes, check: Callable[[], None]
    ) -> Iterator[tuple[int, int, Special]]:
        """Of each place the longest that begins so: (minus its length, place, token)."""
        n, at = 0, data.find(prefix)
        while at >= 0:
            special = self._longest(data, at, len(data), prefix)
            if special is not None:
                yield -len(special.text), at, special
            at = data.find(prefix, at + 1)
            n += 1
            if n % _CHECKED == 0:
                check()

    def _longest(self, data: bytes, at: int, most: int, prefix: bytes) -> Special | None:
        """The longest at a place, of up to `most` bytes."""
        for length, by_text in self._known[prefix].items():
            if length <= most:
                found = by_text.get(data[at : at + length])
                if found is not None:
                    return found
        return None


class _Cutting:
    """A text, and the special tokens that were found in it until now."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.taken = bytearray(len(data))
        """1 where a byte belongs to a special token or was stripped by one."""
        self._found: dict[int, tuple[int, int]] = {}
        """By its begin: its token and its end, with what is stripped."""

    def take(self, at: int, special: Special) -> bool:
        """Takes a token where all of its bytes are free."""
        end = at + len(special.text)
        if self.taken.find(1, at, end) >= 0:
            return False
        if special.strips_left:
            while at > 0 and not self.taken[at - 1] and self._data[at - 1] in _SPACES:
                at -= 1
        if special.strips_right:
            while end < len(self._data) and not self.taken[end] and self._data[end] in _SPACES:
                end += 1
        self.taken[at:end] = b"\1" * (end - at)
        self._found[at] = (special.token, end)
        return True

    def pieces(self) -> list[int | bytes]:
        """What there is in order."""
        pieces: list[int | bytes] = []
        at = 0
        for begin in sorted(self._found):
            token, end = self._found[begin]
            pieces += [self._data[at:begin], token] if at < begin else [token]
            at = end
        return [*pieces, self._data[at:]] if at < len(self._data) else pieces
