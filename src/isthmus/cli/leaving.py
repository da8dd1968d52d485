"""Ctrl-Z while an answer is printed: the answer is paused, and whoever asked goes away."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Leaving:
    """Notes Ctrl-Z while open, instead of suspending the program. On the main thread; does nothing
    on any other, or where there is no such signal."""

    def __init__(self) -> None:
        self.wanted = False
        """Whether Ctrl-Z was pressed."""
        self._before: Any = None

    def __enter__(self) -> Leaving:
        if hasattr(signal, "SIGTSTP") and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTSTP, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTSTP, self._before)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.wanted = True
