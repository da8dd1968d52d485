"""Grammars in llguidance's dialect of Lark, put together from literals, free text and JSON schemas.

Its lexer takes the longest literal that may come: where both "\\n" and "\\n</a>" may, "\\n<b>" is
refused. So a literal that begins like another one has another character after it.

https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isthmus.config import MAX_GRAMMAR_NBYTES
from isthmus.errors import SettingsError
from isthmus.model.forms.tools import NAME

_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}
_CLOSED = {"additionalProperties": False}
_SHARED = ("$defs", "definitions")
_DEFINITIONS = ("#/$defs/", "#/definitions/")


@dataclass(frozen=True)
class Function:
    """A function that may be called."""

    name: str
    parameters: Mapping[str, Any]
    """Its JSON schema: an object."""

    @property
    def properties(self) -> dict[str, Any]:
        """The schema of each parameter, by name."""
        found = self.parameters.get("properties")
        return dict(found) if isinstance(found, Mapping) else {}

    @property
    def required(self) -> set[str]:
        """Names of the parameters that must be given."""
        found = self.parameters.get("required")
        return {str(it) for it in found} if isinstance(found, list) else set()


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


def functions_of(tools: Sequence[Mapping[str, Any]], name: str | None) -> tuple[Function, ...]:
    """The functions among tools, or the one of this name."""
    found = [it.get("function", it) for it in tools]
    return tuple(
        Function(str(it["name"]), {**_CLOSED, **(it.get("parameters") or _NO_PARAMETERS)})
        for it in found
        if name in (None, it["name"])
    )


class Lark:
    """A grammar that is being written."""

    def __init__(self, ids: Mapping[str, int] | None = None) -> None:
        """`ids` has the token of each text that is one control token; others are spelled."""
        self._ids = dict(ids or {})
        self._rules: list[str] = []
        self._n_rules = self._n_chars = 0
        self._of_schema: dict[int, str] = {}
        """Names of rules, by the identities of the schemas, which outlive the grammar."""
        longest = sorted(self._ids, key=len, reverse=True)
        self._controls = re.compile("|".join(map(re.escape, longest)) or "(?!)")

    def source(self, start: str) -> str:
        """The grammar's source, where a text is `start`, an expression."""
        return "\n".join([f"start: {start}", *self._rules, ""])

    def rule(self, body: str, attributes: str = "") -> str:
        """A new rule; returns its name. SettingsError if the grammar becomes larger than one may
        be: a small schema can refer to a large one in many places."""
        self._n_rules += 1
        name = f"r{self._n_rules}"
        self._add(f"{name}{attributes}: {body}")
        return name

    def rule_of(self, schema: Mapping[str, Any], body: Callable[[], str | None]) -> str | None:
        """The rule of a schema, made once, which may refer to itself; None if `body` is."""
        name = self._of_schema.get(id(schema))
        if name is None:
            self._n_rules += 1
            name = self._of_schema[id(schema)] = f"r{self._n_rules}"
            said = body()
            if said is None:
                return None
            self._add(f"{name}: {said}")
        return name

    def _add(self, rule: str) -> None:
        self._rules.append(rule)
        self._n_chars += len(rule)
        if self._n_chars > MAX_GRAMMAR_NBYTES:
            raise SettingsError("the schemas of the tools are too large for a grammar")

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

    def json(self, schema: Mapping[str, Any]) -> str:
        """A JSON value of a schema."""
        return self.rule("%json " + json.dumps({**schema, "x-guidance": _LAYOUT}))

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


def moved(schema: Mapping[str, Any], path: str) -> dict[str, Any]:
    """A schema whose references hold at another place: `path` is where it is put, `#/…`."""

    def within(it: dict[str, Any]) -> dict[str, Any]:
        reference = it.get("$ref")
        if isinstance(reference, str) and reference.startswith("#"):
            return {**it, "$ref": path + reference[1:]}
        return it

    found: dict[str, Any] = json.loads(json.dumps(schema), object_hook=within)
    return found


def part(root: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """A part of a schema, by itself; None if it refers to more than the root's definitions."""
    references = _references(schema)
    if not references:
        return dict(schema)
    shared = {key: root[key] for key in _SHARED if key in root}
    if not all(it.startswith(_DEFINITIONS) for it in references | _references(shared)):
        return None
    return {**shared, **schema}


def _references(schema: Mapping[str, Any]) -> set[str]:
    found, waiting = set(), [schema]
    while waiting:
        it: Any = waiting.pop()
        if isinstance(it, Mapping):
            if isinstance(it.get("$ref"), str):
                found.add(it["$ref"])
            waiting += it.values()
        elif isinstance(it, list):
            waiting += it
    return found
