"""Durations as people and Go write them: `30s`, `5m`, `1h30m`, `7d`; or a number of seconds."""

from __future__ import annotations

import re

from isthmus.errors import SettingsError

FOREVER = -1.0
"""Seconds of a duration without an end: what every duration below 0 means."""
MAX_S = 1e9
"""Seconds of the longest duration: more than thirty years."""
_UNITS_S = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86_400.0,
}
_UNIT = "|".join(_UNITS_S)
_DURATION = re.compile(
    rf"[+-]?(?:\d{{1,12}}(?:\.\d{{0,9}})?(?:{_UNIT}))+|[+-]?\d{{1,12}}(?:\.\d*)?"
)
_PART = re.compile(rf"(\d+(?:\.\d*)?)({_UNIT})?")


def seconds_of(given: str | float) -> float:
    """Seconds of a duration, at most 1e9; FOREVER below 0. SettingsError for what is none."""
    if not isinstance(given, str):
        return FOREVER if given < 0 else min(given, MAX_S)
    text = given.strip()
    if not _DURATION.fullmatch(text):
        raise SettingsError(f"{text[:20]!r} is no duration: give one such as 30s, 5m, 1h, 0 or -1")
    if text.startswith("-"):
        return FOREVER
    seconds = sum(float(n) * _UNITS_S[unit or "s"] for n, unit in _PART.findall(text))
    return min(seconds, MAX_S)
