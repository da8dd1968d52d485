"""Two notations after one marker, told apart by what comes next."""

from __future__ import annotations

from dataclasses import dataclass

from isthmus.model.forms.calls import Calls
from isthmus.model.forms.json_calls import JsonCalls
from isthmus.model.forms.lark import Lark, WantedCalls
from isthmus.model.forms.out import Out
from isthmus.model.forms.python_calls import PythonCalls
from isthmus.model.forms.tape import Reading, Tape


@dataclass(frozen=True)
class Choice(Calls):
    """JSON if a brace comes after the marker, Python otherwise."""

    json: JsonCalls
    other: PythonCalls
    writes_json: bool = True
    """Whether a grammar writes JSON."""

    @property
    def begins(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.json.begins, *self.other.begins)))

    @property
    def markers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.json.markers, *self.other.markers)))

    @property
    def quotes_names(self) -> bool:
        return self.writes_json

    @property
    def bare(self) -> str:
        return self.json.bare

    def read(self, tape: Tape, out: Out) -> Reading[None]:
        yield from tape.take_any(self.begins)
        yield from tape.spaces()
        which = self.json if (yield from tape.comes("{")) else self.other
        yield from which.read(tape, out)

    def grammar(self, lark: Lark, wanted: WantedCalls) -> str | None:
        which = self.json if self.writes_json else self.other
        return which.grammar(lark, wanted)
