"""Colour for people: only on a terminal, and never with NO_COLOR (https://no-color.org)."""

from __future__ import annotations

import sys
from enum import Enum
from typing import TextIO

from isthmus.config import Environment


class Style(Enum):
    """A way to set a text off, as a terminal's control sequence says it (ECMA-48, SGR)."""

    BOLD = "1"
    DIM = "2"
    RED = "31"


def painted(text: str, style: Style, stream: TextIO) -> str:
    """The text as it is written to a stream: in colour if that is a terminal which has some."""
    return _set_off(text, style) if _has_colour(stream) else text


def painted_prompt(text: str, style: Style) -> str:
    """A prompt for `input`, whose control sequences do not count as columns."""
    if not _has_colour(sys.stdout):
        return text
    begin, end = _set_off("\0", style).split("\0")
    return f"\x01{begin}\x02{text}\x01{end}\x02" if "readline" in sys.modules else text


def _set_off(text: str, style: Style) -> str:
    return f"\x1b[{style.value}m{text}\x1b[0m"


def _has_colour(stream: TextIO) -> bool:
    return stream.isatty() and Environment.read().colour
