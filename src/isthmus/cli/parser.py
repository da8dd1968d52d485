"""A parser of the command line whose complaints are one line; options that all commands share."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

from isthmus.cli.colour import Style, painted
from isthmus.config import LOG_LEVELS
from isthmus.printable import printable
from isthmus.spelling import suggestion


class Parser(argparse.ArgumentParser):
    """As argparse's own, but for what it says of a mistake: not the whole usage, which hides it."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with the exit code 2."""
        head = painted(f"{self.prog}:", Style.RED, sys.stderr)
        end = "" if message.endswith("?") else ";"
        said = printable(f"{message}{end} {self.prog} --help lists what there is")
        self.exit(2, f"{head} {said}\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            self.error(f"there is no command {value}{suggestion(value, action.choices)}")
        super()._check_value(action, value)


def add_log_options(
    parser: argparse.ArgumentParser, default: str | None = argparse.SUPPRESS
) -> None:
    """`--log-level` and `-v`, which may come before the command and after it."""
    parser.add_argument(
        "--log-level",
        choices=LOG_LEVELS,
        default=default,
        help="the least important lines of the log that are shown, guests' own among them "
        "(default: warning)",
    )
    parser.add_argument(
        "-v",
        "--verbose",
        dest="log_level",
        action="store_const",
        const="info",
        default=default,
        help="as --log-level info",
    )
