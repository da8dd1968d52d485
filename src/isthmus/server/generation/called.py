"""Arguments of a call as an object, for APIs that do not tell them as text."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from isthmus.server.http.depth import is_deep

_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(?P<half>u[dD][89a-fA-F]..)|.)", re.DOTALL
)
_arguments = msgspec.json.Decoder(dict[str, Any])


def arguments_of(text: str) -> dict[str, Any] | None:
    """The object that a model wrote; None if it is none that JSON can tell again.

    Python reads more than can be told: NaN, numbers that become infinite, half a character, lists
    in a thousand lists. Half a character becomes a replacement character.
    """
    try:
        found = _arguments.decode(_ESCAPE.sub(_whole, text or "{}"))
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return None if is_deep(found) else found


def _whole(found: re.Match[str]) -> str:
    return found[0] if found["half"] is None else "\\ufffd"
