"""What a user types, message by message, with line editing and a memory of earlier lines."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from isthmus.cli.colour import Style, painted_prompt
from isthmus.errors import SettingsError

_HISTORY_LINES = 1000
_FENCE = '"""'
"""Begins and ends a message of several lines."""


def typed_messages() -> Iterator[str]:
    """Messages until Ctrl-D. Each is a line; lines that end with a backslash, and those between
    two fences, make one together. SettingsError for what is no UTF-8."""
    with contextlib.suppress(EOFError):
        while True:
            try:
                yield _message()
            except KeyboardInterrupt:
                print("\n(Ctrl-D or /exit ends)")
    if sys.stdin.isatty():
        print()


def _message() -> str:
    line = _line("> ").strip()
    if line.startswith(_FENCE):
        return _fenced(line.removeprefix(_FENCE))
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1].removesuffix("\\")
        lines.append(_line(". ").rstrip())
    return "\n".join(lines)


def _fenced(first: str) -> str:
    """The text up to the closing fence, or to the end of the input."""
    lines = [first]
    with contextlib.suppress(EOFError):
        while not lines[-1].rstrip().endswith(_FENCE):
            lines.append(_line(". "))
    return "\n".join(lines).rstrip().removesuffix(_FENCE).strip()


def _line(prompt: str) -> str:
    """A line, as UTF-8."""
    try:
        line = input(painted_prompt(prompt, Style.BOLD) if sys.stdin.isatty() else "")
        line.encode()
    except UnicodeError:
        raise SettingsError("what was typed is not UTF-8 text: nothing was sent") from None
    return line


@contextlib.contextmanager
def history(path: Path) -> Iterator[None]:
    """Line editing, and what was typed in earlier conversations."""
    try:
        import readline  # noqa: PLC0415 - not everywhere
    except ImportError:
        yield
        return
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(_HISTORY_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)
