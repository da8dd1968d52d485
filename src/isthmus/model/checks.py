"""What long work calls now and then, so that a deadline or a caller who left can end it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Check: TypeAlias = Callable[[], None]
"""Raises when the work is to end."""


def nothing() -> None:
    """The check of work that nobody ends."""
