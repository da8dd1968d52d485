"""Calls as JSON objects with a name and arguments, alone or in a list, between markers or bare."""

from __future__ import annotations

import json
from dataclasses import dataclass

from isthmus.model.forms.calls import Calls
from isthmus.model.forms.lark import Function, Lark, WantedCalls
from isthmus.model.forms.out import Out
from isthmus.model.forms.tape import Reading, Tape
from isthmus.model.forms.values import JSON, Sink, read_string, read_value

_NAMES = ("name", "tool_name", "function")
_ARGUMENTS = ("arguments", "parameters")
_OTHERS = ("id", "type", "tool_call_id")
_KEYS = {*_NAMES, *_ARGUMENTS, *_OTHERS}


@dataclass(frozen=True)
class JsonCalls(Calls):
    """`BEGIN {"name": …, "arguments": {…}} END`, or a list of such objects.

    A reader takes one object or a list, whatever the form says, and all keys in use.
    """

    opens: tuple[str, ...] = ()
    """Markers that begin a block; a grammar writes the first. Empty: only bare calls."""
    closes: str = ""
    """Marker that ends a block, if any does; a reader does without."""
    before: str = ""
    """White space between the marker and the JSON in a grammar; a reader skips any."""
    after: str = ""
    """White space between the JSON and the end in a grammar."""
    name: str = "name"
    arguments: str = "arguments"
    """Keys of the name and of the arguments in a grammar."""
    listed: bool = False
    """Whether a block holds a list of calls: then there is one block, otherwise one for each."""
    keyed: bool = False
    """Whether a call is `{NAME: {…}}`."""
    between: str = "\n"
    """Text between blocks in a grammar."""
    starts_bare: bool = False
    """Whether a block at the beginning of an answer needs no marker. Such calls may have semicolons
    between them, as those of Llama 3.2 have."""

    @property
    def begins(self) -> tuple[str, ...]:
        return self.opens

    @property
    def markers(self) -> tuple[str, ...]:
        return (*self.opens, *([self.closes] if self.closes else []))

    @property
    def quotes_names(self) -> bool:
        return True

    @property
    def bare(self) -> str:
        return "{[" if self.starts_bare else ""

    # ------------------------------------------------------------------------------ reading

    def read(self, tape: Tape, out: Out) -> Reading[None]:
        yield from tape.take_any(self.opens)
        yield from tape.spaces()
        listed = yield from tape.take("[")
        if (yield from self.read_calls(tape, out, listed)):
            if listed:
                yield from tape.take("]")
            yield from tape.spaces()
            yield from tape.take(self.closes)
            out.leave()

    def read_calls(self, tape: Tape, out: Out, listed: bool) -> Reading[bool]:
        """Reads calls up to what ends a list of them; False where one is none or broken."""
        between = "," if listed else ";"
        while True:
            tape.mark()
            yield from tape.spaces()
            if not (yield from _CallReader(tape, out, self).read()):
                out.fail()
                return False
            out.end()
            tape.mark()
            yield from tape.spaces()
            more = yield from tape.take(between)
            if not more and (listed or not (yield from tape.comes("{"))):
                return True

    # ------------------------------------------------------------------------------ grammar

    def grammar(self, lark: Lark, wanted: WantedCalls) -> str:
        call = lark.any_of([self._call_rule(lark, it) for it in wanted.functions])
        begin = "" if self.starts_bare else self.opens[0] + self.before
        end = "" if self.starts_bare else self.after + self.closes
        if self.listed:
            calls = lark.repeated(lark.rule(call), ", ", wanted.several)
            return f"{lark.text(begin + '[')} {calls} {lark.text(']' + end)}"
        block = f"{lark.text(begin)} {lark.rule(call)} {lark.text(end)}".strip()
        return lark.repeated(lark.rule(block), self.between, wanted.several)

    def _call_rule(self, lark: Lark, function: Function) -> str:
        name, arguments = lark.in_json(function.name), lark.json(function)
        if self.keyed:
            return lark.rule(f'"{{" {name} ": " {arguments} "}}"')
        keys = [lark.spelled(json.dumps(it) + ": ") for it in (self.name, self.arguments)]
        return lark.rule(f'"{{" {keys[0]} {name} ", " {keys[1]} {arguments} "}}"')


class _CallReader:
    """One object that may be a call."""

    def __init__(self, tape: Tape, out: Out, form: JsonCalls) -> None:
        self._tape = tape
        self._out = out
        self._form = form
        self._named = False
        self._began: list[str] | None = None
        """Arguments that came before the name; None if none came."""
        self._argued = False

    def read(self) -> Reading[bool]:
        """Reads the object; False where it is no call, broken or cut off."""
        tape = self._tape
        if not (yield from tape.take("{")):
            return False
        while True:
            yield from tape.spaces()
            key = yield from read_string(tape, JSON)
            yield from tape.spaces()
            if key is None or not (yield from tape.take(":")):
                return False
            yield from tape.spaces()
            if not (yield from self._member(key)):
                return False
            yield from tape.spaces()
            if not (yield from tape.take(",")):
                return (yield from tape.take("}")) and self._complete()

    def _member(self, key: str) -> Reading[bool]:
        if self._form.keyed and not self._named:
            self._name(key)
            return (yield from self._arguments())
        if key in _NAMES and not self._named:
            name = yield from read_string(self._tape, JSON)
            return name is not None and self._name(name)
        if key in _ARGUMENTS and not self._argued:
            return (yield from self._arguments())
        # what is bare is most often no call, and then it should not be held to its end
        if key not in _KEYS and self._form.starts_bare and not self._named:
            return False
        return (yield from read_value(self._tape, JSON, _nowhere))

    def _name(self, name: str) -> bool:
        self._named = True
        self._out.begin(name)
        for piece in self._began or ():
            self._out.arguments(piece)
        return True

    def _arguments(self) -> Reading[bool]:
        """Reads an object, or a text that holds one, as some models write it."""
        self._argued = True
        sink: Sink = self._out.arguments
        if not self._named:
            self._began = []
            sink = self._began.append
        char = yield from self._tape.peek()
        if char == '"':
            text = yield from read_string(self._tape, JSON)
            return text is not None and (yield from _read_text(text, sink))
        if char == "{":
            return (yield from read_value(self._tape, JSON, sink))
        if char == "n" and (yield from self._tape.take("null")):
            sink("{}")
            return True
        return False

    def _complete(self) -> bool:
        if self._named and not self._argued:
            self._out.arguments("{}")
        return self._named


def _read_text(text: str, sink: Sink) -> Reading[bool]:
    """Reads an object in a text of its own; False if it holds something else."""
    inner = Tape()
    inner.feed(text.strip())
    inner.ended = True
    if (yield from inner.comes("{")):
        return (yield from read_value(inner, JSON, sink))
    sink(json.dumps(text, ensure_ascii=False))
    return False


def _nowhere(_: str) -> None:
    pass
