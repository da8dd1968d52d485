"""Calls as a function's name between markers, and its arguments as one value after it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from isthmus.model.forms.calls import Calls
from isthmus.model.forms.json_calls import JsonCalls
from isthmus.model.forms.lark import Lark, WantedCalls
from isthmus.model.forms.out import Out
from isthmus.model.forms.tape import Reading, Tape
from isthmus.model.forms.tools import NAME
from isthmus.model.forms.value_grammar import Values
from isthmus.model.forms.values import JSON, Notation, read_value

_MAX_NAME = 300
_NUMBERED = re.compile(r":[0-9]+")


@dataclass(frozen=True)
class NamedCalls(Calls):
    """`SECTION CALL PREFIX name MIDDLE {…} END CALL … SECTION_END`."""

    call: str
    """Marker that begins each call."""
    middle: tuple[str, ...] = ("",)
    """Markers between name and arguments; a reader takes any, a grammar writes the first."""
    ends: str = ""
    """Marker that ends each call; a reader does without."""
    section: tuple[str, ...] = ()
    """Markers that may begin a block of calls; a grammar writes the first."""
    section_ends: str = ""
    """Marker that ends a block; a reader does without."""
    prefix: str = ""
    """Text before each name; a reader does without."""
    numbered: bool = False
    """Whether a name has a colon and its call's number after it."""
    call_id: str = ""
    """Marker that may begin an id between the name and `middle`."""
    after_name: str = ""
    """White space between a name and `middle` in a grammar; a reader skips any."""
    before: str = ""
    """White space between `middle` and the arguments in a grammar; a reader skips any."""
    after: str = ""
    """Text between the arguments and `ends`; a reader does without."""
    between: str = ""
    """White space between calls in a grammar; a reader skips any."""
    notation: Notation = JSON
    """Notation of the arguments."""
    or_json: bool = False
    """Whether objects or a list with names in them may come after `call`, too."""
    writes_list: bool = False
    """Whether a grammar writes such a list."""

    @property
    def begins(self) -> tuple[str, ...]:
        return (*self.section, self.call)

    @property
    def markers(self) -> tuple[str, ...]:
        others = (self.prefix, *self.middle, self.ends, self.section_ends, self.call_id)
        quotes = [it for it in self.notation.quotes if len(it) > 1]
        return (*self.begins, *(it for it in (*others, *quotes) if it.strip()))

    # ------------------------------------------------------------------------------ reading

    def read(self, tape: Tape, out: Out) -> Reading[None]:
        yield from tape.take_any(self.section)
        while True:
            tape.mark()
            yield from tape.spaces()
            if not (yield from tape.take(self.call)):
                break
            yield from tape.spaces()
            if self.or_json and (yield from tape.comes("[{")):
                yield from JsonCalls(closes=self.section_ends).read(tape, out)
                return
            if not (yield from self._call(tape, out)):
                out.fail()
                return
            out.end()
        yield from tape.take(self.section_ends)
        out.leave()

    def _call(self, tape: Tape, out: Out) -> Reading[bool]:
        yield from tape.take(self.prefix)
        name = yield from tape.word(NAME, _MAX_NAME)
        yield from tape.spaces()
        if self.call_id and (yield from tape.take(self.call_id)):
            yield from tape.word(NAME, _MAX_NAME)
        middle = yield from tape.take_any(self.middle)
        if not name or not (middle or "" in self.middle):
            return False
        yield from tape.spaces()
        if not (yield from tape.comes("{")):
            return False
        out.begin(_NUMBERED.sub("", name) if self.numbered else name)
        if not (yield from read_value(tape, self.notation, out.arguments)):
            return False
        yield from self._end(tape)
        return True

    def _end(self, tape: Tape) -> Reading[None]:
        """Reads what ends a call, as far as it is there."""
        yield from tape.spaces()
        if self.after.strip():
            yield from tape.take(self.after.strip())
            yield from tape.spaces()
        yield from tape.take(self.ends)

    # ------------------------------------------------------------------------------ grammar

    def grammar(self, lark: Lark, wanted: WantedCalls) -> str | None:
        if self.writes_list:
            return JsonCalls(opens=(self.call,), listed=True).grammar(lark, wanted)
        calls = []
        for it in wanted.functions:
            arguments = Values(self.notation, lark, it).whole()
            calls.append(f"{self._head(lark, it.name)} {arguments}")
        call = lark.rule(f"{lark.any_of(calls)} {lark.text(self.after + self.ends)}".strip())
        begin = lark.text(self.section[0] if self.section else "")
        block = lark.repeated(call, self.between, wanted.several)
        return f"{begin} {block} {lark.text(self.section_ends)}".strip()

    def _head(self, lark: Lark, name: str) -> str:
        """The expression of what comes before a call's arguments."""
        begin = self.call + self.prefix + name
        end = self.after_name + self.middle[0] + self.before
        if self.numbered:
            return f"{lark.text(f'{begin}:')} /[0-9]{{1,3}}/ {lark.text(end)}"
        if self.call_id:
            return f"{lark.text(begin + self.call_id)} /[0-9A-Za-z]{{9}}/ {lark.text(end)}"
        return lark.text(begin + end)
