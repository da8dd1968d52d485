"""Calls as Python writes them: `name(key="value", other=[1, True])`, in a list or line by line."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from isthmus.model.forms.calls import Calls
from isthmus.model.forms.json_calls import JsonCalls
from isthmus.model.forms.lark import Function, Lark, WantedCalls
from isthmus.model.forms.out import Out
from isthmus.model.forms.tape import Reading, Tape
from isthmus.model.forms.tools import NAME
from isthmus.model.forms.value_grammar import Values
from isthmus.model.forms.values import PYTHON, read_value, word_value

_MAX_NAME = 300
_LETTER = re.compile(r"[^\W\d]")
_WORD = re.compile(r"\w*")


@dataclass(frozen=True)
class PythonCalls(Calls):
    """`OPEN [name(key=value), …] CLOSE`, or calls in lines of their own."""

    opens: tuple[str, ...] = ()
    """Markers that begin a block; a grammar writes the first. Empty: only bare calls."""
    closes: str = ""
    """Marker that ends a block; a reader does without."""
    listed: bool = True
    """Whether a grammar writes a list; a reader takes lists and lines."""
    starts_bare: bool = False
    """Whether a list at the beginning of an answer needs no marker."""
    suffix: str = ""
    """End of a name that a reader ignores."""

    @property
    def begins(self) -> tuple[str, ...]:
        return self.opens

    @property
    def markers(self) -> tuple[str, ...]:
        return (*self.opens, *([self.closes] if self.closes else []))

    @property
    def bare(self) -> str:
        return "[" if self.starts_bare else ""

    # ------------------------------------------------------------------------------ reading

    def read(self, tape: Tape, out: Out) -> Reading[None]:
        yield from tape.take_any(self.opens)
        yield from tape.spaces()
        listed = yield from tape.take("[")
        yield from tape.spaces()
        if (yield from tape.comes("{")):
            good = yield from JsonCalls().read_calls(tape, out, bool(listed))
        else:
            good = yield from self._calls(tape, out)
        if good:
            if listed:
                yield from tape.take("]")
            yield from tape.spaces()
            yield from tape.take(self.closes)
            out.leave()

    def _calls(self, tape: Tape, out: Out) -> Reading[bool]:
        while True:
            tape.mark()
            yield from tape.spaces()
            if not (yield from self._call(tape, out)):
                out.fail()
                return False
            out.end()
            tape.mark()
            yield from tape.spaces()
            yield from tape.take_any(",;")
            yield from tape.spaces()
            ends = ("]", self.closes or "]")
            if (yield from tape.comes(ends)) or tape.ends_within(ends):
                return True

    def _call(self, tape: Tape, out: Out, printed: bool = False) -> Reading[bool]:
        name = yield from tape.word(NAME, _MAX_NAME)
        yield from tape.spaces()
        if not name or not (yield from tape.take("(")):
            return False
        if name == "print" and not printed and out.tools.known(name) is None:
            good = yield from self._call(tape, out, printed=True)  # as Gemma does
            yield from tape.spaces()
            return good and (yield from tape.take(")"))
        out.begin(name.removesuffix(self.suffix))
        out.arguments("{")
        if not (yield from self._arguments(tape, out)):
            return False
        out.arguments("}")
        return True

    def _arguments(self, tape: Tape, out: Out) -> Reading[bool]:
        """Reads what is between the parentheses, and the one that closes them."""
        n = 0
        while True:
            yield from tape.spaces()
            if (yield from tape.take(")")):
                return True
            out.arguments(", " if n else "")
            if not (yield from self._argument(tape, out, n)):
                return False
            n += 1
            yield from tape.spaces()
            if not (yield from tape.take(",")):
                return (yield from tape.take(")"))

    def _argument(self, tape: Tape, out: Out, n: int) -> Reading[bool]:
        """Reads an argument with its key, or one whose key the tool's schema has at that place."""
        char = yield from tape.peek()
        word = ""
        if _LETTER.fullmatch(char):
            word = yield from tape.word(_WORD, _MAX_NAME)
            yield from tape.spaces()
            if word and (yield from tape.take("=")):
                out.arguments(f"{json.dumps(word, ensure_ascii=False)}: ")
                return (yield from read_value(tape, PYTHON, out.arguments))
        keys = out.tools.parameters(out.name or "")
        value = word_value(word)
        if n >= len(keys) or (word and value is None):
            return False
        out.arguments(f"{json.dumps(keys[n], ensure_ascii=False)}: {value or ''}")
        return bool(word) or (yield from read_value(tape, PYTHON, out.arguments))

    # ------------------------------------------------------------------------------ grammar

    def grammar(self, lark: Lark, wanted: WantedCalls) -> str | None:
        calls = [self._call_rule(lark, it) for it in wanted.functions]
        good = [it for it in calls if it is not None]
        if len(good) < len(calls):
            return None
        begin = self.opens[0] if self.opens else ""
        opening, between, closing = ("[", ", ", "]") if self.listed else ("\n", "\n", "\n")
        call = lark.rule(lark.any_of(good))
        block = lark.repeated(call, between, wanted.several)
        return f"{lark.text(begin + opening)} {block} {lark.text(closing + self.closes)}"

    def _call_rule(self, lark: Lark, function: Function) -> str | None:
        values = Values(PYTHON, lark, function)
        said = []
        for shape in values.shapes():
            if shape is None or not all(it.key.isidentifier() for it in shape):
                return None
            parts: tuple[list[str], list[str]] = ([], [])
            for it in shape:
                member = f"{lark.text(f'{it.key}=')} {values.of(it.together)}"
                parts[0 if it.is_required else 1].append(member)
            members = lark.members(*parts, ", ")
            said.append(f"{lark.text(f'{function.name}(')} {members} {lark.text(')')}")
        return lark.rule(lark.any_of(said))
