"""Strangers' texts: nothing that a terminal would obey, and no forged line."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import unicodedata
from pathlib import Path

import pytest

import isthmus.cli
from isthmus.errors import GuestInvalid
from isthmus.printable import LineFormatter, printable, printable_json, printing
from isthmus.server.http.log import JsonFormatter

HARMLESS = "Grüße, 你好, emoji 👩‍👧 and فارسی\u200cها: it's \\x1b"
KINDS = ("Cc", "Zl", "Zp", "Cs")
"""Categories of characters none of which may reach a terminal."""


@pytest.mark.slow
def test_whatever_is_obeyed_is_visible() -> None:
    for code in range(0x110000):
        character = chr(code)
        kind = unicodedata.category(character)
        shown = printable(character)
        if kind in KINDS or unicodedata.bidirectional(character) in (
            *("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"),
        ):
            assert shown.startswith("\\"), hex(code)
        assert shown.isascii() or shown == character
    assert printable("\x1b[2J\x9b1m\r\n\t\x7f\u202e\ud800") == (
        "\\x1b[2J\\x9b1m\\r\\n\\t\\x7f\\u202e\\ud800"
    )
    assert printable("a\nb\tc\rd", lines=True) == "a\nb\tc\\rd"
    assert printable(HARMLESS) == HARMLESS


def test_json_means_the_same() -> None:
    value = {"\x9b": ["\x1b\u202e\u2028\x7f\n", HARMLESS, "\U000e0041"]}
    for indent in (None, 1):
        text = printable_json(value, indent)
        assert json.loads(text) == value
        assert printable(text, lines=indent is not None) == text


def record(text: str, agent: str | None = None) -> logging.LogRecord:
    made = logging.LogRecord("isthmus.guest", logging.WARNING, "f", 1, "%s", (text,), None)
    if agent is not None:
        made.agent = agent
    return made


FORGED = "x\nisthmus.server: GET /admin 200\r\x1b[1Fisthmus.server: \u202eeno"


def test_a_guest_cannot_forge_a_line() -> None:
    line = LineFormatter().format(record(FORGED, "abc123"))
    assert line.startswith("isthmus.guest[abc123]: x\\nisthmus.server")
    assert printable(line) == line
    text = JsonFormatter().format(record(FORGED, "abc123"))
    said = json.loads(text)
    assert (said["event"], said["agent"]) == ("guest", "abc123")
    assert printable(text) == text
    assert JsonFormatter().format(record("x")).find('"event":"log"') > 0


def test_a_traceback_cannot_either() -> None:
    made = record("it broke")
    try:
        raise ValueError(FORGED)
    except ValueError:
        made.exc_info = sys.exc_info()
    lines = LineFormatter().format(made).split("\n")
    assert lines[0] == "isthmus.guest: it broke"
    assert all(line.startswith("    ") for line in lines[1:])
    assert any("isthmus.server" in line for line in lines)


def test_an_error_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    isthmus.cli._complain(GuestInvalid("it has a name\x1b[2J\nisthmus: all is well"))
    assert capsys.readouterr().err == ("isthmus: it has a name\\x1b[2J\n  isthmus: all is well\n")


def test_a_terminal_gets_what_is_printable_and_a_pipe_gets_the_data(tmp_path: Path) -> None:
    reading, writing = os.openpty()
    with os.fdopen(writing, "w", newline="") as terminal:
        with printing(terminal):
            print("a\x1b[2Jb\u202e", end="")
            print(HARMLESS)
        assert not terminal.closed
        seen = os.read(reading, 65536).decode()
    os.close(reading)
    assert seen.replace("\r\n", "\n") == f"a\\x1b[2Jb\\u202e{HARMLESS}\n"
    data = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with printing(data):
        print("a\x1bb", file=data, end="", flush=True)
    assert data.buffer.getvalue() == b"a\x1bb"  # type: ignore[attr-defined]


def test_whoever_prints_strangers_texts_escapes_them() -> None:
    """No JSON is printed but by `printable_json`: DEL, C1 and bidi would be raw in it."""
    folder = Path(isthmus.cli.__file__).parent
    for path in folder.glob("*.py"):
        assert "ensure_ascii" not in path.read_text(), path
