"""Strangers' texts for people: what a terminal or a reader of a log would obey becomes visible.

A guest, a snapshot, a model's file, a prompt and a client may all hold escape sequences, line
breaks that begin a forged line, and characters that turn the direction of reading. `printable`
writes them as Python does: `\\x1b`, `\\n`, `\\u202e`. Whatever is printed or logged passes it where
it leaves the process: by `TerminalStream`, `LineFormatter`, `printable_json`.
"""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

_DIRECTION = "\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
_OBEYED = re.compile(
    f"[\\x00-\\x1f\\x7f-\\x9f\\xad\\u180e{_DIRECTION}\\ufeff\\ufff9-\\ufffb"
    "\\ud800-\\udfff\\U000e0000-\\U000e007f]"
)
"""Controls (C0, DEL, C1), lone surrogates, separators of lines, tags, and invisible characters,
those that turn the direction of reading among them. Joiners stay: emoji and scripts need them."""


def printable(text: str, *, lines: bool = False) -> str:
    """The text with what would be obeyed as escapes; with `lines` line breaks and tabs stay."""
    if text.isascii() and text.isprintable():
        return text
    return _OBEYED.sub(lambda it: it[0] if lines and it[0] in "\n\t" else _escape(it[0]), text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def printable_json(value: Any, indent: int | None = None) -> str:
    """A value as JSON in which nothing would be obeyed."""
    return escape_json(json.dumps(value, indent=indent, ensure_ascii=False, default=str))


def escape_json(text: str) -> str:
    """A JSON text that means the same, in which nothing would be obeyed but line breaks."""
    return _OBEYED.sub(lambda it: it[0] if it[0] == "\n" else json.dumps(it[0])[1:-1], text)


class TerminalStream(io.TextIOWrapper):
    """Standard output of a terminal: lines as they are, and nothing else that it would obey."""

    def write(self, text: str, /) -> int:
        """Returns the number of characters that came."""
        super().write(printable(text, lines=True))
        return len(text)


@contextmanager
def printing(stream: TextIO) -> Iterator[None]:
    """Has `print` write what is printable only if standard output, `stream`, is a terminal.

    What goes to a file or another program is data, and stays what it is.
    """
    if not stream.isatty():
        yield
        return
    terminal = TerminalStream(
        stream.buffer, encoding=stream.encoding, errors="backslashreplace", line_buffering=True
    )
    try:
        with redirect_stdout(terminal):
            yield
    finally:
        terminal.flush()
        terminal.detach()  # the buffer is not ours to close


class LineFormatter(logging.Formatter):
    """One line for each record: `isthmus.server: text`, and a traceback's lines indented below.

    What a guest says is `isthmus.guest[AGENT]: text`, whatever it says.
    """

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        agent = getattr(record, "agent", None)
        whose = record.name if agent is None else f"{record.name}[{agent or '-'}]"
        lines = [f"{whose}: {printable(record.getMessage())}"]
        if record.exc_info:
            traceback = printable(self.formatException(record.exc_info), lines=True)
            lines += [f"    {line}" for line in traceback.split("\n")]
        return "\n".join(lines)
