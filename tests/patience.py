"""Waiting in tests: as long as a machine that is busy with other work may need, and no longer."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 60.0
"""Seconds after which it is given up. On an idle machine nothing here takes one of them."""


def eventually(happened: Callable[[], bool]) -> bool:
    """Whether it happens in time; looks again and again."""
    end = time.monotonic() + PATIENCE_S
    while not happened():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
