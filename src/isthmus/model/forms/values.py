"""Values as models write them, turned into JSON while they come.

One reader for all notations: which quotes, brackets and words a notation has is data. What is
written to `out` is compact JSON, as `json.dumps` has it, whatever the white space was.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from isthmus.model.forms.tape import Reading, Stops, Tape

MAX_DEPTH = 128
"""Brackets within brackets: what is deeper, many JSON parsers do not take."""
_MAX_WORD = 300
"""Characters of a number: Python reads integers of 4,300 digits at most."""
_WORD = re.compile(r"[A-Za-z0-9_+.\-]*")
BARE_WORD = re.compile(r"[^,:\[\]{}()\"'<>\r\n]*")
"""A key or a text without quotes, as far as it goes."""
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_HEX = re.compile(r"[0-9A-Fa-f]*")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": ""}
_ESCAPES |= {it: it for it in "/\\\"'"}
_N_HEX = {"x": 2, "u": 4, "U": 8}
_CONSTANTS = {"true": "true", "false": "false", "null": "null"}
_CONSTANTS |= {"True": "true", "False": "false", "None": "null"}

Sink = Callable[[str], object]


@dataclass(frozen=True)
class Notation:
    """How values are written."""

    quotes: Mapping[str, str]
    """The end of a text by its beginning; longer beginnings first."""
    raw: frozenset[str] = frozenset()
    """Beginnings of texts in which a backslash is a backslash."""
    brackets: Mapping[str, str] = field(default_factory=lambda: {"{": "}", "[": "]"})
    bare: bool = False
    """Whether keys, and texts without a comma or a bracket, need no quotes."""

    @cached_property
    def stops(self) -> dict[str, Stops]:
        """Places where a text is interrupted, by its beginning."""
        return {
            begin: Stops([end] if begin in self.raw else [end, "\\"])
            for begin, end in self.quotes.items()
        }


JSON = Notation(quotes={'"': '"'})
"""JSON, and what small models make of it: True, None, a comma too many, raw line breaks."""
PYTHON = Notation(
    quotes={'"""': '"""', "'''": "'''", '"': '"', "'": "'"},
    brackets={"{": "}", "[": "]", "(": ")"},
)
"""Literals of Python, without arithmetic and sets."""
BARE = Notation(
    quotes={'<|"|>': '<|"|>', '"': '"'},
    raw=frozenset({'<|"|>'}),
    bare=True,
)
"""Gemma's own: `{key:<|"|>text<|"|>,other:[1,true]}`."""
ESCAPE = Notation(
    quotes={"<escape>": "<escape>", '"': '"'},
    raw=frozenset({"<escape>"}),
    bare=True,
)
"""FunctionGemma's: the same with other quotes."""


def read_value(tape: Tape, notation: Notation, out: Sink) -> Reading[bool]:
    """Reads one value, as JSON to `out`; False where it is broken or cut off."""
    return (yield from _Reader(tape, notation, out).read())


def read_string(tape: Tape, notation: Notation) -> Reading[str | None]:
    """Reads a text in quotes, decoded; None if there is none or it is broken or cut off."""
    pieces: list[str] = []
    if not (yield from _Reader(tape, notation, pieces.append).string()):
        return None
    try:
        return str(json.loads("".join(pieces)))
    except ValueError:
        return None


def escaped(text: str) -> str:
    """A text as it stands between the quotes of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def word_value(word: str) -> str | None:
    """A constant or a number as JSON has it; None if the word is neither."""
    return _CONSTANTS.get(word) or number(word)


def in_python(value: object) -> str:
    """A decoded JSON value as PYTHON writes it."""
    if value is None or isinstance(value, bool):
        return str(value)
    return json.dumps(value, ensure_ascii=False)


def number(word: str) -> str | None:
    """A number as JSON has it; None if the word is no number."""
    if _NUMBER.fullmatch(word):
        return word
    try:
        return str(int(word, 0))
    except ValueError:
        pass
    try:
        value = float(word)
    except ValueError:
        return None
    return repr(value) if math.isfinite(value) else None


class _Reader:
    """One value, with the brackets that are open in it."""

    def __init__(self, tape: Tape, notation: Notation, out: Sink) -> None:
        self._tape = tape
        self._notation = notation
        self._out = out
        self._open: list[str] = []
        """Ends of the brackets, innermost last."""

    def read(self) -> Reading[bool]:
        while True:
            yield from self._tape.spaces()
            bracket = yield from self._tape.take_any(self._notation.brackets)
            if bracket:
                good = self._enter(bracket)
            else:
                good = yield from self._scalar()
            if not good or not (yield from self._to_next(first=bool(bracket))):
                return False
            if not self._open:
                return True

    def _enter(self, bracket: str) -> bool:
        self._open.append(self._notation.brackets[bracket])
        self._out("{" if bracket == "{" else "[")
        return len(self._open) <= MAX_DEPTH

    def _to_next(self, first: bool) -> Reading[bool]:
        """Reads what is between two values: commas, ends of brackets, a key."""
        while self._open:
            yield from self._tape.spaces()
            comma = not first and (yield from self._tape.take(","))
            if comma:
                yield from self._tape.spaces()
            if (yield from self._tape.take(self._open[-1])):
                self._out("}" if self._open.pop() == "}" else "]")
                first = False
                continue
            if not first and not comma:
                return False
            self._out(", " if comma else "")
            return self._open[-1] != "}" or (yield from self._key())
        return True

    def _key(self) -> Reading[bool]:
        if not (yield from self.string()):
            if not self._notation.bare:
                return False
            key = (yield from self._tape.word(BARE_WORD, _MAX_WORD)).strip()
            if not key:
                return False
            self._out(json.dumps(key, ensure_ascii=False))
        yield from self._tape.spaces()
        if not (yield from self._tape.take(":")):
            return False
        self._out(": ")
        return True

    def _scalar(self) -> Reading[bool]:
        if (yield from self.string()):
            return True
        pattern = BARE_WORD if self._notation.bare else _WORD
        word = (yield from self._tape.word(pattern, _MAX_WORD)).strip()
        text = word_value(word)
        if text is None and word and self._notation.bare:
            text = json.dumps(word, ensure_ascii=False)
        self._out(text or word)
        return text is not None

    def string(self) -> Reading[bool]:
        """Reads a text in quotes; False if there is none, and where it is broken or cut off."""
        begin = yield from self._tape.take_any(self._notation.quotes)
        if not begin:
            return False
        self._out('"')
        end = self._notation.quotes[begin]
        while True:
            stop = yield from self._tape.until(self._notation.stops[begin], self._inside)
            if not (yield from self._tape.take(stop or end)):
                return False
            if stop == end:
                self._out('"')
                return True
            if not (yield from self._escape()):
                return False

    def _inside(self, piece: str) -> None:
        self._out(escaped(piece))

    def _escape(self) -> Reading[bool]:
        """Reads what a backslash begins. One that means nothing stands for itself."""
        char = yield from self._tape.peek()
        if not char or not (yield from self._tape.take(char)):
            return False
        if char in _N_HEX:
            return (yield from self._code_point(char))
        self._inside(_ESCAPES.get(char, "\\" + char))
        return True

    def _code_point(self, kind: str) -> Reading[bool]:
        digits = ""
        while len(digits) < _N_HEX[kind]:
            char = yield from self._tape.peek()
            if not char:
                return False
            if not _HEX.fullmatch(char):
                self._inside("\\" + kind + digits)
                return True
            yield from self._tape.take(char)
            digits += char
        code = int(digits, 16)
        if 0xD800 <= code < 0xE000:
            self._out(f"\\u{code:04x}")
        else:
            self._inside(chr(code) if code < 0x110000 else "\\" + kind + digits)
        return True
