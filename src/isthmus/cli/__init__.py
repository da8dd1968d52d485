"""The command line: one file for each subcommand, found by file name.

Each defines `HELP` (one line), `EXAMPLES`, `add_arguments(parser)` and `run(arguments)`, which
returns the exit code or raises an IsthmusError. Exit codes: 0 good, 1 the guest failed or a proof
did not hold, 2 anything that the user can mend, 130 stopped by Ctrl-C; `run` of a command exits
with the command's own.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import logging
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from isthmus.cli.colour import Style, painted
from isthmus.cli.command import split_argv
from isthmus.cli.parser import Parser, add_log_options
from isthmus.errors import GuestTrapped, IsthmusError
from isthmus.printable import LineFormatter, printable, printing
from isthmus.version import VERSION

COMMANDS = (
    "run",
    "map",
    "chat",
    "embed",
    "rerank",
    "demo",
    "list",
    "show",
    "rm",
    "snapshot",
    "restore",
    "fork",
    "inspect",
    "diff",
    "log",
    "verify-snapshot",
    "gc",
    "verify",
    "serve",
    "ps",
    "bench",
    "receipt",
    "devices",
    "architectures",
    "pull",
    "inspect-model",
    "new",
    "build",
    "dev",
    "completion",
)

_TAKEN = ("gc", "inspect", "list", "map")
"""Names of Python's own, so these commands' files are called NAME_command.py: a module becomes a
name within its package."""

_SHOWN_FRAMES = 8


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = Parser(
        prog="isthmus",
        description="WebAssembly agents and a compute device on the same bytes.",
        epilog="isthmus COMMAND --help tells more. Try: isthmus demo",
    )
    parser.add_argument("--version", action="version", version=f"isthmus {VERSION}")
    add_log_options(parser, default=None)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = _module(name)
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.HELP,
            epilog=f"examples:\n{module.EXAMPLES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        add_log_options(command)
        command.set_defaults(parser=command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. No traceback reaches the user."""
    given, after = split_argv(_asked(sys.argv[1:] if argv is None else argv))
    arguments, unknown = build_parser().parse_known_args(given)
    arguments.argv = after
    if unknown:  # by the command's own name, which argparse does not say for these
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}{_meant(arguments)}")
    _log_to_stderr(arguments.log_level or "warning")
    try:
        with printing(sys.stdout):
            code = _module(arguments.command).run(arguments)
            sys.stdout.flush()
    except IsthmusError as error:
        return _complain(error)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return int(code)


def _asked(words: Sequence[str]) -> Sequence[str]:
    """The words of the command line; nothing at all, and `help`, are for help."""
    if not words:
        return ["--help"]
    return [*words[1:], "--help"] if words[0] == "help" else words


def _meant(arguments: argparse.Namespace) -> str:
    """How a command takes what many give it as options or words."""
    hows = {"arg": "options of the guest as --arg NAME=VALUE", "message": "messages by --message"}
    taken = [how for name, how in hows.items() if name in arguments]
    return f" (it takes {', '.join(taken)})" if taken else ""


def _log_to_stderr(level: str) -> None:
    logging.basicConfig(level=level.upper())
    for handler in logging.getLogger().handlers:
        handler.setFormatter(LineFormatter())


def _complain(error: IsthmusError) -> int:
    """Tells of an error on standard error. Lines after the first are indented, so that none of
    them looks like a message of its own."""
    head = painted("isthmus:", Style.RED, sys.stderr)
    said = printable(str(error), lines=True).replace("\n", "\n  ")
    print(f"{head} {said}", file=sys.stderr)
    if isinstance(error, GuestTrapped) and error.backtrace:
        called = printable(" <- ".join(_counted(error.backtrace)[:_SHOWN_FRAMES]))
        print(f"isthmus: in {called}", file=sys.stderr)
    return error.exit_code


def _counted(backtrace: Sequence[str]) -> list[str]:
    """A backtrace in which a place that is there several times in a row is there once."""
    # `list` is a module here, that of the command.
    groups = ((place, len([*again])) for place, again in itertools.groupby(backtrace))
    return [place if n == 1 else f"{place} ×{n}" for place, n in groups]


def _module(name: str) -> ModuleType:
    file = f"{name}_command" if name in _TAKEN else name.replace("-", "_")
    return importlib.import_module(f"isthmus.cli.{file}")
