"""Tools as people name them: on the command line, and in tables of a TOML file.

::

    NAME=COMMAND              a program; quotes count, and nothing else of a shell
    NAME=MODULE:FUNCTION      a Python function
    [tools]
    NAME = "…"                either of them
    NAME = { … }              one of `command`, `function`, `mcp` and `hosts`, and what else holds:

    command        words, or one line of them         folder, environment
    function       MODULE:FUNCTION
    mcp            a command or a URL: the server's tools are NAME_TOOL       headers, folder, …
    hosts          which may be fetched from
    description, parameters        what the model is told, if not what the tool says of itself
    undo                           a command, or MODULE:FUNCTION, that takes one run back; for a
                                   server { TOOL = "TOOL", … }, of which each takes back the first
    deadline_s, output_nbytes      bounds of each run
    keys                           names of a server's API keys that may use it, if not all
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from isthmus.errors import IsthmusError, SettingsError
from isthmus.paths import expanded
from isthmus.tools.command import CommandTool, program_of
from isthmus.tools.fetch import fetch_tool
from isthmus.tools.function import function_tool
from isthmus.tools.hosts import AllowedHosts
from isthmus.tools.process import Program
from isthmus.tools.tool import Tool, ToolLimits, require_name

_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_URL = re.compile(r"https?://", re.I)
KINDS = ("command", "function", "mcp", "hosts")
"""Keys of which a table has exactly one."""
FETCH = "http_fetch"
"""The usual name of the tool that fetches pages."""


class ToolSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """See the module. Nothing of it is opened yet."""

    command: str | list[str] | None = None
    function: str | None = None
    mcp: str | list[str] | None = None
    hosts: list[str] | None = None
    folder: str | None = None
    environment: dict[str, str] = {}
    headers: dict[str, str] = {}
    description: str | None = None
    parameters: dict[str, Any] | None = None
    undo: str | list[str] | dict[str, str] | None = None
    deadline_s: float | None = None
    output_nbytes: int | None = None
    keys: list[str] | None = None

    @property
    def limits(self) -> ToolLimits:
        """Bounds of each run. SettingsError."""
        given = {"deadline_s": self.deadline_s, "output_nbytes": self.output_nbytes}
        return ToolLimits(**{name: it for name, it in given.items() if it is not None})  # type: ignore[arg-type]

    def program(self, words: str | list[str]) -> Program:
        """The program of a command. SettingsError."""
        folder = None if self.folder is None else expanded(self.folder)
        if folder is not None and not folder.is_dir():
            raise SettingsError(f"there is no folder {folder}")
        return replace(program_of(words, folder), environment=self.environment)


def specs_of_texts(texts: Iterable[str]) -> dict[str, ToolSpec]:
    """What `NAME=COMMAND` and `NAME=MODULE:FUNCTION` say. SettingsError."""
    found: dict[str, ToolSpec] = {}
    for text in texts:
        name, equals, what = text.partition("=")
        if not equals or not what.strip():
            raise SettingsError(f"--tool {text}: give NAME=COMMAND or NAME=MODULE:FUNCTION")
        add(found, name, spec_of(name, what))
    return found


def specs_of_table(table: object, where: str = "") -> dict[str, ToolSpec]:
    """What a table `[tools]` says. SettingsError, which says where the table is."""
    prefix = f"{where}: " if where else ""
    if not isinstance(table, Mapping):
        raise SettingsError(f"{prefix}tools is {table!r}: give a table of lines NAME = …")
    return {name: spec_of(name, said, prefix) for name, said in table.items()}


def spec_of(name: str, said: object, where: str = "") -> ToolSpec:
    """One tool: a text, or a table. SettingsError."""
    try:
        require_name(name)
        if isinstance(said, str):
            if not said.strip():
                raise SettingsError("it is empty: give a command or MODULE:FUNCTION")
            said = {"function" if _FUNCTION.fullmatch(said.strip()) else "command": said.strip()}
        spec = msgspec.convert(said, ToolSpec)
    except (msgspec.ValidationError, SettingsError) as error:
        raise SettingsError(f"{where}tools.{name}: {error}") from None
    if sum(getattr(spec, kind) is not None for kind in KINDS) != 1:
        raise SettingsError(f"{where}tools.{name}: give exactly one of {', '.join(KINDS)}")
    if spec.undo is not None and spec.hosts is not None:
        raise SettingsError(f"{where}tools.{name}: what was fetched has no undo")
    if spec.undo is not None and (spec.mcp is not None) != isinstance(spec.undo, dict):
        raise SettingsError(
            f"{where}tools.{name}: undo is a command or MODULE:FUNCTION, and for an MCP server "
            'a table of its tools, { TOOL = "TOOL THAT TAKES IT BACK" }'
        )
    return spec


def add(specs: dict[str, ToolSpec], name: str, spec: ToolSpec) -> None:
    """Adds a tool to others. SettingsError for a name that is there."""
    if name in specs:
        raise SettingsError(f"there are two tools named {name}")
    specs[name] = spec


class Toolbox:
    """Tools that were opened, by the names that agents get them under.

    Owns the MCP servers among them: close it after the agents that use them, or use it in `with`.
    """

    def __init__(self, specs: Mapping[str, ToolSpec]) -> None:
        """Opens all of them. SettingsError for one that cannot be."""
        self.tools: dict[str, Tool] = {}
        self.keys: dict[str, list[str] | None] = {}
        """By tool, names of the API keys that may use it; None for all."""
        with contextlib.ExitStack() as stack:
            for name, spec in specs.items():
                try:
                    found = _opened(name, spec, stack)
                except IsthmusError as error:
                    raise SettingsError(f"tools.{name}: {error}") from error
                if twice := found.keys() & self.tools.keys():
                    raise SettingsError(f"there are two tools named {min(twice)}")
                self.tools |= found
                self.keys |= dict.fromkeys(found, spec.keys)
            self._stack = stack.pop_all()

    def __enter__(self) -> Toolbox:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the MCP servers; a second call does nothing."""
        self._stack.close()


def _opened(name: str, spec: ToolSpec, stack: contextlib.ExitStack) -> dict[str, Tool]:
    """The tools that a spec names."""
    limits = spec.limits
    if spec.mcp is not None:
        return _of_server(name, spec, limits, stack)
    if spec.command is not None:
        undoing = None if spec.undo is None else spec.program(_words(spec.undo))
        tool: Tool = CommandTool(program=spec.program(spec.command), undo=undoing, limits=limits)
    elif spec.function is not None:
        tool = _function_tool(spec.function, spec, limits)
    else:
        tool = fetch_tool(AllowedHosts(spec.hosts or ()), limits=limits)
    if spec.description is not None:
        tool = replace(tool, description=spec.description)
    if spec.parameters is not None:
        tool = replace(tool, parameters=spec.parameters)
    return {name: tool}


def _function_tool(text: str, spec: ToolSpec, limits: ToolLimits) -> Tool:
    found = _function(text)
    if spec.undo is None:
        return found if isinstance(found, Tool) else function_tool(found, limits=limits)
    if not isinstance(spec.undo, str) or not _FUNCTION.fullmatch(spec.undo):
        raise SettingsError(f"undo is {spec.undo!r}: a function is taken back by MODULE:FUNCTION")
    undo = _function(spec.undo)
    if isinstance(found, Tool) or isinstance(undo, Tool):
        raise SettingsError("undo is for a function, and is one: a Tool takes back its own runs")
    return function_tool(found, undo=undo, limits=limits)


def _of_server(
    name: str, spec: ToolSpec, limits: ToolLimits, stack: contextlib.ExitStack
) -> dict[str, Tool]:
    try:
        from isthmus.tools.mcp import McpServer  # noqa: PLC0415 - needs an optional dependency
    except ImportError as error:
        raise SettingsError(f"MCP servers need: pip install 'isthmus[mcp]' ({error})") from None
    target: Program | str
    if isinstance(spec.mcp, str) and _URL.match(spec.mcp):
        target = spec.mcp
    else:
        target = spec.program(spec.mcp or "")
    server = stack.enter_context(McpServer(target, headers=spec.headers, limits=limits))
    undo = spec.undo if isinstance(spec.undo, dict) else {}
    for it in (*undo, *undo.values()):
        if it not in server.tools:
            raise SettingsError(
                f"undo: {server} has no tool {it}: it has {', '.join(server.tools)}"
            )
    return {
        f"{name}_{each}": replace(tool, undo=server.tools[undo[each]]) if each in undo else tool
        for each, tool in server.tools.items()
    }


def _words(undo: str | list[str] | dict[str, str]) -> str | list[str]:
    assert not isinstance(undo, dict), "it is a server's, as spec_of saw"
    return undo


def _function(text: str) -> Callable[..., object] | Tool:
    """What MODULE:FUNCTION names. A module may lie in the folder that the process runs in."""
    module_name, _, path = text.partition(":")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        found: Any = importlib.import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
    except AttributeError:
        raise SettingsError(f"the module {module_name} has no {path}") from None
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise SettingsError(f"the module {module_name} cannot be imported: {said}") from error
    if not isinstance(found, Tool) and not callable(found):
        raise SettingsError(f"{text} is a {type(found).__name__}, and neither function nor Tool")
    return found  # type: ignore[no-any-return]
