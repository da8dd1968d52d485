"""Calls as elements: a function's name, then each parameter with its key and its value as text.

A value is text unless the tool's schema says otherwise, so readers need the schemas: `5` is the
text "5" for a parameter of type string, and the number 5 for one of type integer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from isthmus.model.forms.calls import Calls
from isthmus.model.forms.json_calls import JsonCalls
from isthmus.model.forms.lark import Function, Lark, WantedCalls
from isthmus.model.forms.out import Out
from isthmus.model.forms.tape import SPACES, Reading, Stops, Tape
from isthmus.model.forms.tools import NAME, type_of
from isthmus.model.forms.value_grammar import Values, text_until
from isthmus.model.forms.values import JSON, escaped
from isthmus.model.schemas import Compiler, Member, Term

_MAX_NAME = 300
_KEY = re.compile(r"[^<>\"\n]*")
_SPACE = re.compile(f"[{SPACES}]*")
TEXT = frozenset({"string"})
ANY: frozenset[str] = frozenset()
BY_SCHEMA = None
_CONSTANTS = {"True": "true", "False": "false", "None": "null"}


@dataclass(frozen=True)
class XmlCalls(Calls):
    """`SECTION CALL name NAME_ENDS (PARAMETER key KEY_ENDS value PARAMETER_ENDS)* CALL_ENDS`."""

    call: str
    name_ends: str
    parameter: str
    key_ends: tuple[tuple[str, frozenset[str] | None], ...]
    """Texts that may come between key and value, and the types that each tells; a grammar writes
    the first that tells the right ones."""
    parameter_ends: str
    call_ends: str
    value: str = ""
    """Marker that begins a value, if any does."""
    section: tuple[str, ...] = ()
    """Markers that may begin a block of calls; a grammar writes the first."""
    section_ends: str = ""
    padded: bool = False
    """Whether a value has a line break on both sides, which is no part of it."""
    after_section: str = "\n"
    after_name: str = "\n"
    after_parameter: str = "\n"
    after_call: str = "\n"
    between: str = ""
    """White space at these places in a grammar, the last between calls, or between sections of one
    call; a reader skips any."""
    one_call: bool = False
    """Whether a section has one call."""

    @property
    def begins(self) -> tuple[str, ...]:
        return (*self.section, self.call)

    @property
    def markers(self) -> tuple[str, ...]:
        ends = (self.name_ends, self.parameter_ends, self.call_ends, self.section_ends, self.value)
        keys = (it for it, _ in self.key_ends)
        return tuple(it for it in (*self.begins, self.parameter, *ends, *keys) if it.strip())

    # ------------------------------------------------------------------------------ reading

    def read(self, tape: Tape, out: Out) -> Reading[None]:
        section = yield from tape.take_any(self.section)
        yield from tape.spaces()
        if section and (yield from tape.comes("{")):  # as the same models write now and then
            yield from JsonCalls(closes=self.section_ends).read(tape, out)
            return
        while True:
            tape.mark()
            yield from tape.spaces()
            if not (yield from tape.take(self.call)):
                break
            yield from tape.spaces()
            if not (yield from self._call(tape, out)):
                out.fail()
                return
            out.end()
        yield from tape.take(self.section_ends)
        out.leave()

    def _call(self, tape: Tape, out: Out) -> Reading[bool]:
        name = yield from tape.word(NAME, _MAX_NAME)
        yield from tape.spaces()
        named = yield from tape.take(self.name_ends)
        yield from tape.spaces()
        ends = (self.parameter, self.call_ends)
        if not name or not named or not (yield from tape.comes(ends)):
            return False
        out.begin(name)
        out.arguments("{")
        first = True
        while (yield from tape.take(self.parameter)):
            out.arguments("" if first else ", ")
            first = False
            if not (yield from self._parameter(tape, out)):
                return False
            yield from tape.spaces()
        if not (yield from tape.take(self.call_ends)):
            return False
        out.arguments("}")
        return True

    def _parameter(self, tape: Tape, out: Out) -> Reading[bool]:
        key = (yield from tape.word(_KEY, _MAX_NAME)).strip()
        end = yield from tape.take_any(it for it, _ in self.key_ends)
        if self.value:
            yield from tape.spaces()
        if not key or not end or not (yield from tape.take(self.value)):
            return False
        types = dict(self.key_ends)[end]
        if types is BY_SCHEMA:
            types = out.tools.types(out.name or "", key)
        out.arguments(json.dumps(key, ensure_ascii=False) + ": ")
        if types == TEXT:
            out.arguments('"')
            whole = yield from self._value(tape, lambda it: out.arguments(escaped(it)))
            out.arguments('"' if whole else "")
            return whole
        pieces: list[str] = []
        whole = yield from self._value(tape, pieces.append)
        if whole:
            out.arguments(converted("".join(pieces), types))
        return whole

    def _value(self, tape: Tape, out: Callable[[str], object]) -> Reading[bool]:
        """Reads a value and what ends it. An end marker after which no part of a call comes is a
        part of the value."""
        inside = _Unpadded(out) if self.padded else out
        stops = Stops([self.parameter_ends])
        after = [self.parameter, self.call_ends]
        while (yield from tape.until(stops, inside)):
            yield from tape.take(self.parameter_ends)
            gap: list[str] = []
            yield from tape.run(_SPACE, gap.append)
            if (yield from tape.comes(after)) or tape.ends_within(after):
                return True
            inside("".join([self.parameter_ends, *gap]))
        return False

    # ------------------------------------------------------------------------------ grammar

    def grammar(self, lark: Lark, wanted: WantedCalls) -> str | None:
        calls = [self._call_rule(lark, it) for it in wanted.functions]
        good = [it for it in calls if it is not None]
        if len(good) < len(calls):
            return None
        begin = lark.text(self.section[0] + self.after_section) if self.section else ""
        end = lark.text(self.section_ends)
        call = lark.rule(lark.any_of(good))
        if self.one_call:
            return lark.repeated(lark.rule(f"{begin} {call} {end}"), self.between, wanted.several)
        return f"{begin} {lark.repeated(call, self.between, wanted.several)} {end}".strip()

    def _call_rule(self, lark: Lark, function: Function) -> str | None:
        head = self.call + function.name + self.name_ends + self.after_name
        values = Values(JSON, lark, function)
        said = []
        for shape in values.shapes():
            if shape is None or not all(_KEY.fullmatch(it.key) for it in shape):
                return None
            parts = [lark.text(head)]
            for it in shape:
                value = self._parameter_rule(lark, function, values, it)
                if value is None:
                    return None
                parts.append(value if it.is_required else f"({value})?")
            said.append(" ".join([*parts, lark.text(self.call_ends + self.after_call)]))
        return lark.rule(lark.any_of(said))

    def _parameter_rule(
        self, lark: Lark, function: Function, values: Values, it: Member
    ) -> str | None:
        compiler = lark.compiler(function)
        terms = compiler.terms.of(compiler.plain(it.together))
        text = any("string" in x.types for x in terms)
        pad = "\n" if self.padded else ""
        fits = [x for x, told in self.key_ends if told is BY_SCHEMA or (told == TEXT) == text]
        begin = f"\n{self.value}" if self.value else pad
        head = lark.text(self.parameter + it.key + fits[0] + begin)
        end = pad + self.parameter_ends
        if text:
            said = [_text(compiler, lark, x, end) for x in terms]
            if any(x is None for x in said):
                return None
            value = lark.any_of(list(dict.fromkeys(x for x in said if x is not None)))
        else:
            value = f"{values.of(it.together)} {lark.text(end)}"
        return lark.rule(f"{head} {value} {lark.text(self.after_parameter)}".strip())


def _text(compiler: Compiler, lark: Lark, term: Term, end: str) -> str | None:
    """A value that may be a text, in the spelling that a reader takes for what it is."""
    if term.values is not None and not all(isinstance(it, str) for it in term.values):
        said = [it if isinstance(it, str) else json.dumps(it) for it in term.values]
        if any(end in it for it in said):
            return None
        return f"{lark.any_of([lark.spelled(it) for it in said])} {lark.text(end)}"
    if term.types == {"string"} or term.values is not None:
        return text_until(lark, compiler.warn, term, end)
    if term.says:
        node = term.parts[0].node
        compiler.warn(
            node, "in this model's form, what may be a text or something else is any text"
        )
    return lark.free(end)


def converted(text: str, types: frozenset[str]) -> str:
    """A value as JSON, of one of these types if it can be; ANY if nobody says which. What is
    of no such type is a text."""
    word = text.strip()
    word = _CONSTANTS.get(word, word)
    try:
        value = json.loads(word, parse_constant=_refused)
        found = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    kind = type_of(value)
    fits = kind in types or (kind == "integer" and "number" in types) or "string" not in types
    if types == ANY or (fits and kind != "string"):
        return found
    return json.dumps(text, ensure_ascii=False)


def _refused(word: str) -> None:
    raise ValueError(word)


class _Unpadded:
    """A value without the line break at its beginning and the one at its end."""

    def __init__(self, out: Callable[[str], object]) -> None:
        self._out = out
        self._first = True
        self._held = ""

    def __call__(self, piece: str) -> None:
        if self._first:
            self._first = False
            piece = piece.removeprefix("\n")
        piece = self._held + piece
        self._held = "\n" if piece.endswith("\n") else ""
        if said := piece.removesuffix("\n"):
            self._out(said)
