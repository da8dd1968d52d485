"""`--tool`, `--mcp`, `--fetch` and `--tools`: what the command line gives agents of the world."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from isthmus.config import Limits
from isthmus.errors import SettingsError
from isthmus.toml_file import read_toml
from isthmus.tools import Tool
from isthmus.tools.spec import (
    FETCH,
    Toolbox,
    ToolSpec,
    add,
    spec_of,
    specs_of_table,
    specs_of_texts,
)


def add_tool_options(parser: argparse.ArgumentParser) -> None:
    """The options."""
    group = parser.add_argument_group(
        "tools", "what of the world agents may use (docs/tools.md); without these, nothing"
    )
    group.add_argument(
        "--tool",
        action="append",
        default=[],
        metavar="NAME=COMMAND|MODULE:FUNCTION",
        help="a program, which gets its arguments as JSON on standard input and answers on "
        "standard output; or a Python function; repeat for more",
    )
    group.add_argument(
        "--mcp",
        action="append",
        default=[],
        metavar="NAME=COMMAND|URL",
        help="an MCP server, whose tools are called NAME_TOOL; repeat for more (needs "
        "isthmus[mcp])",
    )
    group.add_argument(
        "--fetch",
        action="append",
        default=[],
        metavar="HOST",
        help=f"give the tool {FETCH}, which fetches pages from this host: a name, *.NAME, or an "
        "address; repeat for more",
    )
    group.add_argument(
        "--tools",
        dest="tools_file",
        type=Path,
        metavar="FILE",
        help="a TOML file with a table [tools], which can say more: descriptions, schemas, bounds",
    )


def tool_specs(arguments: argparse.Namespace) -> dict[str, ToolSpec]:
    """The tools that the options name. SettingsError."""
    specs = _of_file(arguments.tools_file) if arguments.tools_file is not None else {}
    for name, spec in specs_of_texts(arguments.tool).items():
        add(specs, name, spec)
    for text in arguments.mcp:
        name, equals, target = text.partition("=")
        if not equals or not target.strip():
            raise SettingsError(f"--mcp {text}: give NAME=COMMAND or NAME=URL")
        add(specs, name, spec_of(name, {"mcp": target.strip()}))
    if arguments.fetch:
        add(specs, FETCH, spec_of(FETCH, {"hosts": arguments.fetch}))
    return specs


def open_tools(arguments: argparse.Namespace) -> Toolbox:
    """The tools that the options name, opened; the caller closes them."""
    return Toolbox(tool_specs(arguments))


def undoing(limits: Limits, tools: Mapping[str, Tool]) -> Limits:
    """Limits by which a message that fails is undone, if one of the tools takes its runs back."""
    takes_back = any(it.take_back is not None for it in tools.values())
    return replace(limits, on_failure="undo") if takes_back else limits


def _of_file(file: Path) -> dict[str, ToolSpec]:
    said = read_toml(file)
    if "tools" not in said:
        raise SettingsError(f"{file} has no table [tools]")
    return specs_of_table(said["tools"], str(file))
