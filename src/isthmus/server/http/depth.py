"""How deeply JSON is nested: what was read in a short call stack is written in a longer one."""

from __future__ import annotations

from typing import Any

MAX_DEPTH = 100
"""Lists and objects around anything, as in conversations. Python reads about 950, and fails to
write as many where more calls are around."""


def is_deep(value: Any, most: int = MAX_DEPTH) -> bool:
    """Whether more than `most` lists and objects are around something. Takes no call stack."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(most):
        level = [it for each in level for it in _parts(each) if isinstance(it, dict | list)]
        if not level:
            return False
    return True


def _parts(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value
