"""Tools that a request offers: as the model is told of them, and whose calls they are for callers.

A chat template knows functions with a flat name and a JSON schema. A tool of a namespace gets a
name of both, and a custom tool, whose input is a free text, becomes a function with one argument.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from msgspec import Struct

from isthmus.abi import GrammarKind
from isthmus.server.generation.wanted import Tool, ToolChoice
from isthmus.server.http.errors import HttpError
from isthmus.server.http.support import Row, Support, kind_of_tool
from isthmus.server.responses.fields import TOOLS
from isthmus.server.responses.requests import converted

INPUT = "input"
"""The one argument of a custom tool."""
_CODE = "invalid_tool"
_SYNTAXES = {"lark": GrammarKind.LARK, "regex": GrammarKind.REGEX}


@dataclass(frozen=True)
class Origin:
    """Whose calls those of a function are."""

    name: str
    namespace: str | None = None
    is_custom: bool = False
    grammar: tuple[GrammarKind, str] | None = None
    """What the input of a custom tool follows."""

    @property
    def kind(self) -> str:
        """The type of its calls as items."""
        return "custom_tool_call" if self.is_custom else "function_call"


@dataclass(frozen=True)
class Offer:
    """All tools of a request, by the names that the model knows."""

    tools: Mapping[str, Tool] = field(default_factory=dict)
    origins: Mapping[str, Origin] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    """Which tools were left out, and why."""

    def origin(self, name: str) -> Origin:
        """Whose call one of a function is."""
        return self.origins.get(name, Origin(name))


@dataclass(frozen=True)
class Choice:
    """Which tools may or must be called."""

    tools: tuple[Tool, ...]
    how: ToolChoice
    name: str | None = None
    """The tool that must be called, as the model knows it."""
    input_of: Origin | None = None
    """The custom tool whose input, and nothing else, is the answer."""


class _Function(Struct, kw_only=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Format(Struct, kw_only=True):
    type: str = "text"
    syntax: str = ""
    definition: str = ""


class _Custom(Struct, kw_only=True):
    name: str
    description: str | None = None
    format: _Format | None = None


class _Namespace(Struct, kw_only=True):
    name: str
    tools: list[dict[str, Any]]


def offer_of(given: Sequence[Mapping[str, Any]]) -> Offer:
    """What the model is told of tools. HttpError 400 for what is no tool, or a name that is given
    twice."""
    gathered = _Gathered()
    for n, tool in enumerate(given):
        gathered.add(tool, f"tools[{n}]")
    return Offer(gathered.tools, gathered.origins, tuple(gathered.warnings))


def flat_name(name: str, namespace: str | None) -> str:
    """The name by which the model knows a tool."""
    return name if namespace is None else f"{namespace}__{name}"


class _Gathered:
    """An offer that is being made."""

    def __init__(self) -> None:
        self.tools: dict[str, Tool] = {}
        self.origins: dict[str, Origin] = {}
        self.warnings: dict[str, None] = {}

    def add(self, given: Mapping[str, Any], where: str, namespace: str | None = None) -> None:
        """One more tool, or those of a namespace."""
        kind = given.get("type")
        row = _row(given)
        if row is None:
            said = f"tools of type {str(kind)[:80]!r} are not supported; there are function, custom"
            raise HttpError(400, said, code="unsupported_tool", param=where)
        if row.support is Support.LEFT_OUT:
            name = kind_of_tool(TOOLS, str(kind))
            self.warnings[f"the tool {name} was left out: {row.said}"] = None
        elif kind == "function":
            self._function(converted(given, _Function, where, _CODE), where, namespace)
        elif kind == "custom":
            self._custom(converted(given, _Custom, where, _CODE), where, namespace)
        elif namespace is not None:
            raise HttpError(400, "a namespace has no namespaces", param=where)
        else:
            found = converted(given, _Namespace, where, _CODE)
            for n, tool in enumerate(found.tools):
                self.add(tool, f"{where}.tools[{n}]", found.name)

    def _function(self, it: _Function, where: str, namespace: str | None) -> None:
        name, is_strict = flat_name(it.name, namespace), it.strict is True
        tool = Tool(name, it.description, it.parameters, is_strict)
        self._put(tool, Origin(it.name, namespace), where)

    def _custom(self, it: _Custom, where: str, namespace: str | None) -> None:
        grammar, said = None, it.description
        if it.format is not None and it.format.type != "text":
            grammar = _grammar_of(it.format, where)
            told = f"The input follows this {it.format.syntax} grammar:\n{it.format.definition}"
            said = told if said is None else f"{said}\n\n{told}"
        schema = {
            "type": "object",
            "properties": {INPUT: {"type": "string"}},
            "required": [INPUT],
            "additionalProperties": False,
        }
        tool = Tool(flat_name(it.name, namespace), said, schema)
        self._put(tool, Origin(it.name, namespace, True, grammar), where)

    def _put(self, tool: Tool, origin: Origin, where: str) -> None:
        if not tool.name or tool.name in self.tools:
            said = f"two tools are called {tool.name!r}" if tool.name else "a tool needs a name"
            raise HttpError(400, said, code=_CODE, param=f"{where}.name")
        self.tools[tool.name], self.origins[tool.name] = tool, origin


def _grammar_of(it: _Format, where: str) -> tuple[GrammarKind, str]:
    if it.type != "grammar" or it.syntax not in _SYNTAXES:
        said = f"a format is text, or a grammar in {' or '.join(_SYNTAXES)}"
        raise HttpError(400, said, code=_CODE, param=f"{where}.format")
    return _SYNTAXES[it.syntax], it.definition


# ---------------------------------------------------------------------------------- choices


def choice_of(offer: Offer, given: str | Mapping[str, Any] | None) -> Choice:
    """Which tools may or must be called. HttpError 400 if `tool_choice` says nothing of that."""
    tools = tuple(offer.tools.values())
    if given is None or isinstance(given, str):
        if given not in (None, "none", "auto", "required"):
            _refuse(f"tool_choice is {given[:80]!r}: give none, auto, required or a tool")
        return _demanded(offer, tools, ToolChoice(given or "auto"))
    kind = given.get("type")
    if kind == "allowed_tools":
        return _allowed(offer, given)
    if kind not in ("function", "custom"):
        _refuse(f"tool_choice of type {str(kind)[:80]!r} is not supported: name a function")
    name = _named(offer, given)
    return _demanded(offer, (offer.tools[name],), ToolChoice.REQUIRED, tools)


def _allowed(offer: Offer, given: Mapping[str, Any]) -> Choice:
    mode, tools = given.get("mode", "auto"), given.get("tools")
    if mode not in ("auto", "required") or not isinstance(tools, list):
        _refuse("allowed_tools needs a mode, auto or required, and a list of tools")
    names = [_named(offer, it) for it in tools if not _is_left_out(it)]
    chosen = tuple(offer.tools[name] for name in dict.fromkeys(names))
    return _demanded(offer, chosen, ToolChoice(mode))


def _is_left_out(tool: Any) -> bool:
    row = _row(tool) if isinstance(tool, dict) else None
    return row is not None and row.support is Support.LEFT_OUT


def _row(tool: Mapping[str, Any]) -> Row | None:
    """What becomes of a tool; None if nobody knows its kind."""
    kind = tool.get("type")
    return TOOLS.get(kind_of_tool(TOOLS, kind)) if isinstance(kind, str) else None


def _named(offer: Offer, given: Any) -> str:
    """The name, as the model knows it, of the tool that a choice names."""
    name = given.get("name") if isinstance(given, dict) else None
    namespace = given.get("namespace") if isinstance(given, dict) else None
    flat = flat_name(name, namespace) if isinstance(name, str) else ""
    if flat not in offer.tools:
        _refuse(f"tool_choice wants {str(name)[:80]!r}, which is not among tools")
    return flat


def _demanded(
    offer: Offer,
    chosen: tuple[Tool, ...],
    how: ToolChoice,
    told: tuple[Tool, ...] | None = None,
) -> Choice:
    """The choice of some tools. `told` are those that the model is told of, if these are others."""
    if how is not ToolChoice.REQUIRED:
        return Choice(chosen, how)
    if not chosen:
        _refuse("tool_choice wants a tool, and there is none")
    only = chosen[0].name if len(chosen) == 1 else None
    origin = offer.origins[only] if only is not None else None
    if origin is not None and origin.grammar is not None:
        return Choice(told or chosen, ToolChoice.AUTO, input_of=origin)
    return Choice(told or chosen, how, only if told is not None else None)


def _refuse(said: str) -> NoReturn:
    raise HttpError(400, said, code="invalid_tool_choice", param="tool_choice")


def arguments_of(text: str) -> str:
    """The arguments of a call of a custom tool whose input is the text."""
    return json.dumps({INPUT: text}, ensure_ascii=False)
