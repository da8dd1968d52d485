"""The one argument of a custom tool, read out of JSON while it comes."""

from __future__ import annotations

import json
import re

from isthmus.server.responses.tools import INPUT

_HEAD = re.compile(rf'\s*\{{\s*"{INPUT}"\s*:\s*"')
_HIGH, _LOW = r"\\u[dD][89abAB][0-9a-fA-F]{2}", r"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_CHARACTERS = re.compile(rf'(?:[^"\\]|\\["\\/bfnrt]|{_HIGH}{_LOW}|(?!{_HIGH})\\u[0-9a-fA-F]{{4}})*')
_MAX_HEAD = 4096
"""Characters within which the head of the arguments must end, so that text is told as it comes."""


class InputReader:
    """Takes parts of `{"input": "…"}`, gives parts of the text. Its time grows with the length."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._rest = ""
        """What came and is not read yet."""
        self._told: list[str] = []
        self._inside = self._ended = False

    def feed(self, part: str) -> str:
        """The text that became known with one more part."""
        self._parts.append(part)
        if self._ended:
            return ""
        self._rest += part
        if not self._inside:
            self._ended = len(self._rest) > _MAX_HEAD
            head = _HEAD.match(self._rest)
            if head is None:
                return ""
            self._inside, self._ended = True, False
            self._rest = self._rest[head.end() :]
        found = _CHARACTERS.match(self._rest)
        raw = "" if found is None else found[0]
        self._rest = self._rest[len(raw) :]
        self._ended = self._rest.startswith('"')
        text = _sound(json.loads(f'"{raw}"', strict=False))
        self._told.append(text)
        return text

    def end(self) -> tuple[str, str]:
        """The whole text, and its last part: the arguments as they came, if they are others."""
        told, given = "".join(self._told), "".join(self._parts)
        try:
            whole = _sound(json.loads(given, strict=False)[INPUT])
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            whole = told if self._inside else given
        if not isinstance(whole, str) or not whole.startswith(told):
            whole = told or given
        return whole, whole[len(told) :]


def _sound(text: str) -> str:
    """The text with a replacement character for each half of a pair of surrogates that is alone."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
