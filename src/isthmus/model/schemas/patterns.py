"""Regular expressions of JSON schemas, which are ECMAScript's, as expressions of llguidance.

A schema's pattern is looked for anywhere in a text, and may have anchors. What comes out has none
and matches whole texts: `^a|b$` becomes `(?:a(?s:.*)|(?s:.*)b)`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import llguidance

ANYTHING = "(?s:.*)"
MAX_CHARS = 4096
"""Characters of a pattern."""
_MAX_DEPTH = 50
_COUNT = re.compile(r"\{(\d{1,5})(,(\d{0,5}))?\}")
_NAME = re.compile(r"\?P?<[A-Za-z_]\w*>|\?:")
_LOOKS = re.compile(r"\^\(\?[=!]")
_HEX = re.compile(r"x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|u\{([0-9A-Fa-f]{1,6})\}")
_PROPERTY = re.compile(r"[pP]\{[A-Za-z_=]{1,60}\}")
_SPACE = r"\t\n\x0b\x0c\r\x20\u{a0}\u{1680}\u{2000}-\u{200a}\u{2028}\u{2029}\u{202f}\u{205f}"
_SPACE += r"\u{3000}\u{feff}"
_CLASSES = {
    "d": "0-9",
    "w": "A-Za-z0-9_",
    "s": _SPACE,
    "D": "[^0-9]",
    "W": "[^A-Za-z0-9_]",
    "S": f"[^{_SPACE}]",
}
_CONTROLS = {"t": r"\t", "n": r"\n", "r": r"\r", "f": r"\x0c", "v": r"\x0b", "0": r"\x00"}
_SPECIAL = frozenset(r"\.+*?()|[]{}^$#&-~/ ")


class PatternError(ValueError):
    """A pattern that cannot be followed; says why."""


@dataclass
class _Group:
    """Alternatives; each is a list of anchors, texts and groups with what comes after them."""

    options: list[list[_Group | str]] = field(default_factory=lambda: [[]])
    count: str = ""

    @property
    def has_anchor(self) -> bool:
        return any(
            it in ("^", "$") if isinstance(it, str) else it.has_anchor
            for option in self.options
            for it in option
        )


@dataclass(frozen=True)
class Pattern:
    """Expressions that match whole texts: a text matches all that are wanted and no other."""

    wanted: tuple[str, ...]
    unwanted: tuple[str, ...] = ()


def read_pattern(pattern: str) -> Pattern:
    """A pattern, which may look ahead at its beginning, after `^`. PatternError."""
    if len(pattern) > MAX_CHARS:
        raise PatternError(f"a pattern has more than {MAX_CHARS} characters")
    reader = _Reader(pattern)
    found: dict[str, list[str]] = {"(?=": [], "(?!": []}
    if _LOOKS.match(pattern):
        reader.at = 1
        while (begin := pattern[reader.at : reader.at + 3]) in found:
            reader.at += 3
            found[begin].append(_written(reader.closed(1), False, True))
    ahead = reader.at > 0
    group = reader.group(0)
    if reader.at < len(pattern):
        raise PatternError("a ) that closes nothing")
    if ahead and len(group.options) > 1:
        raise PatternError("a lookahead before alternatives is not supported")
    said = _written(group, not ahead, True)
    return Pattern((said, *found["(?="]), tuple(found["(?!"]))


def whole(pattern: str) -> str:
    """A pattern as one expression that matches whole texts. PatternError."""
    found = read_pattern(pattern)
    if len(found.wanted) > 1 or found.unwanted:
        raise PatternError("a lookahead is not supported here")
    return found.wanted[0]


def _written(group: _Group, left: bool, right: bool) -> str:
    """`left` and `right`: whether any text may come before and after the group."""
    made = [_sequence(list(it), left, right) for it in group.options]
    return f"(?:{'|'.join(made)}){group.count}"


def _sequence(items: list[_Group | str], left: bool, right: bool) -> str:
    while items and items[0] == "^":
        items, left = items[1:], False
    while items and items[-1] == "$":
        items, right = items[:-1], False
    said, last = [], len(items) - 1
    before, after = left, right
    for n, it in enumerate(items):
        if isinstance(it, str):
            if it in ("^", "$"):
                raise PatternError("an anchor in the middle of a pattern is not supported")
            said.append(it)
        elif not it.has_anchor:
            said.append(_written(it, False, False))
        elif it.count or (n not in (0, last)):
            raise PatternError("an anchor in the middle of a pattern is not supported")
        else:
            said.append(_written(it, left and n == 0, right and n == last))
            before = before and n != 0
            after = after and n != last
    return (ANYTHING if before else "") + "".join(said) + (ANYTHING if after and items else "")


class _Reader:
    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self.at = 0

    def group(self, depth: int) -> _Group:
        """Reads up to the end, or to what closes the group."""
        if depth > _MAX_DEPTH:
            raise PatternError("a pattern is nested too deeply")
        found = _Group()
        while self.at < len(self._text) and self._text[self.at] != ")":
            char = self._text[self.at]
            self.at += 1
            if char == "|":
                found.options.append([])
                continue
            item = self._item(char, depth)
            count = self._counted()
            if count and item in ("^", "$"):
                raise PatternError("an anchor is repeated")
            if isinstance(item, _Group):
                item.count = count
            found.options[-1].append(item if isinstance(item, _Group) else item + count)
        return found

    def _item(self, char: str, depth: int) -> _Group | str:
        if char in "^$.":
            return char
        if char in "*+?":
            raise PatternError(f"there is nothing that {char} repeats")
        if char == "[":
            return self._class()
        if char == "\\":
            return self._escape(in_class=False)
        if char != "(":
            return _literal(char)
        if self._text.startswith("?", self.at):
            name = _NAME.match(self._text, self.at)
            if name is None:
                raise PatternError("lookarounds and flags in a pattern are not supported")
            self.at = name.end()
        return self.closed(depth + 1)

    def closed(self, depth: int) -> _Group:
        """Reads a group with what closes it."""
        inner = self.group(depth)
        if self.at >= len(self._text):
            raise PatternError("a ( that nothing closes")
        self.at += 1
        return inner

    def _counted(self) -> str:
        """A count after an item; whether it is lazy changes nothing of what is matched."""
        rest = self._text[self.at : self.at + 1]
        if rest and rest in "*+?":
            count = rest
            self.at += 1
        elif found := _COUNT.match(self._text, self.at):
            count = found.group()
            if found.group(3) and int(found.group(3)) < int(found.group(1)):
                raise PatternError(f"{count} counts backwards")
            self.at = found.end()
        else:
            return ""
        if self._text.startswith("?", self.at):
            self.at += 1
        return count

    def _escape(self, in_class: bool) -> str:
        char = self._text[self.at : self.at + 1]
        self.at += 1
        if not char:
            raise PatternError(r"a \ at the end")
        if char in _CLASSES:
            return _CLASSES[char] if in_class else f"[{_CLASSES[char]}]"
        if found := _PROPERTY.match(self._text, self.at - 1):
            self.at = found.end()
            return f"\\{found.group()}"
        said = self._escaped(char, in_class)
        if said is None and char.isalnum():
            raise PatternError(rf"\{char} in a pattern is not supported")
        return said or _literal(char)

    def _escaped(self, char: str, in_class: bool) -> str | None:
        """A character that an escape stands for; None if it stands for itself."""
        if char == "b" and in_class:
            return r"\x08"
        if char in _CONTROLS and not self._text[self.at : self.at + 1].isdecimal():
            return _CONTROLS[char]
        if char == "c" and re.match("[A-Za-z]", self._text[self.at :]):
            self.at += 1
            return f"\\x{ord(self._text[self.at - 1].upper()) - 64:02x}"
        if found := _HEX.match(self._text, self.at - 1):
            self.at = found.end()
            return _literal(self._character(int("".join(filter(None, found.groups())), 16)))
        return None

    def _character(self, code: int) -> str:
        low = re.compile(r"\\u(D[C-F][0-9A-F]{2})", re.IGNORECASE).match(self._text, self.at)
        if 0xD800 <= code < 0xDC00 and low:
            self.at = low.end()
            code = 0x10000 + ((code - 0xD800) << 10) + (int(low.group(1), 16) - 0xDC00)
        if 0xD800 <= code < 0xE000 or code > 0x10FFFF:
            raise PatternError("half of a surrogate pair")
        return chr(code)

    def _class(self) -> str:
        negated = self._text.startswith("^", self.at)
        self.at += negated
        parts: list[str] = []
        while not self._text.startswith("]", self.at):
            char = self._text[self.at : self.at + 1]
            if not char:
                raise PatternError("a [ that nothing closes")
            self.at += 1
            in_range = char == "-" and parts and not self._text.startswith("]", self.at)
            if in_range and parts[-1] != "-" and _is_single(parts[-1]):
                parts.append("-")
            else:
                parts.append(self._escape(in_class=True) if char == "\\" else _literal(char))
        self.at += 1
        if not parts:
            return "(?s:.)" if negated else "[^\\x00-\\U0010FFFF]"
        return f"[{'^' if negated else ''}{_ranges(parts)}]"


def _ranges(parts: list[str]) -> str:
    """Members of a class; a - that is between no two characters is one itself."""
    said = []
    for n, it in enumerate(parts):
        after = parts[n + 1] if n + 1 < len(parts) else ""
        between = it == "-" and _is_single(after) and not (n >= 2 and parts[n - 2] == "-")
        said.append("-" if between else r"\-" if it == "-" else it)
    return "".join(said)


def _is_single(part: str) -> bool:
    return bool(part) and part not in _CLASSES.values() and not part.startswith((r"\p", r"\P"))


def _literal(char: str) -> str:
    if char in _SPECIAL:
        return f"\\x{ord(char):02x}"
    return char if char.isprintable() else f"\\u{{{ord(char):x}}}"


class Matching:
    """Whether texts match expressions, in time that grows with the text."""

    def __init__(self) -> None:
        self._made: dict[str, llguidance.LLMatcher] = {}
        wrapper = llguidance.TokenizerWrapper(Bytes())
        self._tokenizer = llguidance.LLTokenizer(wrapper, n_vocab=257)

    def matches(self, expression: str, text: str) -> bool:
        """PatternError if the expression is none, or too costly."""
        made = self._made.get(expression)
        if made is None:
            grammar = llguidance.LLMatcher.grammar_from_regex(expression)
            limits = llguidance.LLParserLimits(max_lexer_states=2000, verbose_errors=False)
            made = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
            if made.is_error():
                raise PatternError(made.get_error().strip().splitlines()[0][:200])
            self._made[expression] = made
        data = list(text.encode(errors="surrogatepass"))
        matcher = made.deep_copy()
        taken = matcher.try_consume_tokens(data)
        if matcher.is_error():
            raise PatternError("a pattern is too costly")
        return bool(taken == len(data) and matcher.is_accepting())


class Bytes:
    """A vocabulary of all bytes, as llguidance takes it, for grammars that know no model."""

    eos_token_id = 256
    bos_token_id = None
    special_token_ids = (256,)
    tokens = (*(bytes([it]) for it in range(256)), b"<end>")

    def __call__(self, text: bytes) -> list[int]:
        return list(text)
