"""Grammars in llguidance's dialect of Lark, put together from literals, free text and JSON schemas.

Its lexer takes the longest literal that may come: where both "\\n" and "\\n</a>" may, "\\n<b>" is
refused. So a literal that begins like another one has another character after it.

https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from isthmus.errors import GrammarError
from isthmus.model.checks import Check, nothing
from isthmus.model.forms.tools import NAME
from isthmus.model.schemas import Compiler, Conjunction, Rules

_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}
_UNTYPED = frozenset(("type", "$ref", "allOf", "anyOf", "oneOf", "enum", "const"))
"""Keywords of which one says that arguments are an object, as it has to be."""
_CLOSED = {"unevaluatedProperties": False}
_OPEN = ("additionalProperties", "unevaluatedProperties")


@dataclass(frozen=True, eq=False)
class Function:
    """A function that may be called."""

    name: str
    parameters: Mapping[str, Any]
    """Its JSON schema: an object."""
    strict: bool = False
    """Whether a schema that cannot be enforced whole is refused."""


@dataclass
class SchemaCheck:
    """What becomes of schemas of tools that cannot be enforced whole."""

    strict: frozenset[str] = frozenset()
    """Names of the tools for which that is an error."""
    warnings: list[str] = field(default_factory=list)
    """Sentences about what is not enforced."""
    check: Check = nothing
    """Called at each step in which schemas are made into rules."""


@dataclass(frozen=True)
class WantedCalls:
    """The calls that an answer must consist of."""

    functions: tuple[Function, ...]
    """At least one."""
    several: bool
    """Whether more than one call may be made."""

    @property
    def plain(self) -> bool:
        """Whether all names are such that they end where a form's next character comes."""
        return all(NAME.fullmatch(it.name) for it in self.functions)


def functions_of(
    tools: Sequence[Mapping[str, Any]], name: str | None, strict: Iterable[str] = ()
) -> tuple[Function, ...]:
    """The functions among tools, or the one of this name. `strict`: names of those that are."""
    found = [it.get("function", it) for it in tools]
    names = frozenset(strict)
    return tuple(
        Function(
            str(it["name"]), _closed(it.get("parameters") or _NO_PARAMETERS), it["name"] in names
        )
        for it in found
        if name in (None, it["name"])
    )


def _closed(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """Parameters that are an object, of which no more are given than are named."""
    more: dict[str, Any] = {} if any(it in parameters for it in _OPEN) else _CLOSED
    return {**parameters, **more, **({} if "type" in parameters else {"type": "object"})}


class Lark(Rules):
    """A grammar that is being written."""

    def __init__(self, ids: Mapping[str, int] | None = None, check: Check = nothing) -> None:
        """`ids` has the token of each text that is one control token; others are spelled."""
        super().__init__(check=check)
        self._ids = dict(ids or {})
        self._compilers: dict[Function, Compiler] = {}
        longest = sorted(self._ids, key=len, reverse=True)
        self._controls = re.compile("|".join(map(re.escape, longest)) or "(?!)")

    def compiler(self, function: Function) -> Compiler:
        """What makes rules of a function's schemas."""
        if function not in self._compilers:
            name = f"tool {function.name[:60]}: "
            self._compilers[function] = Compiler(self, function.parameters, name)
        return self._compilers[function]

    def warnings(self) -> tuple[str, ...]:
        """Sentences about what of the schemas is not enforced. GrammarError if one of a strict
        function is not."""
        for function, compiler in self._compilers.items():
            if function.strict and compiler.warnings:
                raise GrammarError(f"strict: {compiler.warnings[0]}")
        return tuple(said for it in self._compilers.values() for said in it.warnings)

    def text(self, literal: str) -> str:
        """A literal, with its control tokens as tokens."""
        parts, at = [], 0
        for found in self._controls.finditer(literal):
            parts += [self._quoted(literal[at : found.start()]), f"<[{self._ids[found.group()]}]>"]
            at = found.end()
        return " ".join(it for it in [*parts, self._quoted(literal[at:])] if it)

    def spelled(self, text: str) -> str:
        """A text of a caller's, which has no control tokens, whatever it says."""
        return self._quoted(text) or '""'

    def in_json(self, text: str) -> str:
        """A text of a caller's, in JSON's quotes."""
        return self._quoted(json.dumps(text, ensure_ascii=False))

    def json(self, function: Function, together: Conjunction | None = None) -> str:
        """The JSON of a function's arguments, or of a part of them."""
        return self.compiler(function).add(together)

    def free(self, end: str, least: int = 0, most: int | None = None) -> str:
        """Any text of so many characters, and `end`, which is not in the text. If there is a
        control token in `end`, its first one ends the text."""
        count = (
            "*" if least == 0 and most is None else f"{{{least},{'' if most is None else most}}}"
        )
        control = self._controls.search(end)
        if control is None:
            return self.rule(f"/(?s:.{count})/", f"[suffix={self._quoted(end)}]")
        before, rest = end[: control.start()], end[control.start() :]
        return f"{self.rule(f'/(?s:.{count}){_pattern(before)}/')} {self.text(rest)}"

    def members(self, required: Sequence[str], optional: Sequence[str], between: str) -> str:
        """All that are required, and any of the optional ones after them, in order."""
        comma = self.text(between)
        if required:
            rest = [f"({comma} {it})?" for it in optional]
            return f" {comma} ".join(required) + "".join(f" {it}" for it in rest)
        if not optional:
            return ""
        following, choices = "", []
        for member in reversed(optional):
            choices.append(f"{member} {following}".strip())
            following = self.rule(f"({comma} {member})? {following}".strip())
        return f"({' | '.join(reversed(choices))})?"

    def repeated(self, item: str, between: str, several: bool) -> str:
        """An item, or several with a literal between them."""
        if not several:
            return item
        again = " ".join(it for it in (self.text(between), item) if it)
        return f"{item} ({again})*"

    @staticmethod
    def any_of(choices: Sequence[str]) -> str:
        """One of some expressions."""
        return choices[0] if len(choices) == 1 else f"({' | '.join(choices)})"

    @staticmethod
    def _quoted(literal: str) -> str:
        return json.dumps(literal, ensure_ascii=False) if literal else ""


def _pattern(literal: str) -> str:
    """A literal as a regular expression between slashes."""
    return re.escape(literal).replace("\\\n", r"\n").replace("/", r"\/")
