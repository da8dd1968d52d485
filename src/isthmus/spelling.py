"""The name that somebody probably meant, for errors about a name that does not exist."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_MAX_CHARACTERS = 100
"""Length of the longest name that is compared: the time grows with its square."""
_NEAR = 0.8
"""Share of characters that two names must have in common, in order."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """`: did you mean temperature?`, or nothing if no known name is near."""
    if len(name) > _MAX_CHARACTERS:
        return ""
    near = get_close_matches(name, list(known), n=1, cutoff=_NEAR)
    return f": did you mean {near[0]}?" if near else ""
