"""A wait for work that cannot be interrupted, such as a function's: it is left alone instead."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable
from typing import Any

from isthmus.errors import Overloaded
from isthmus.tools.tool import Check, ToolLimits, too_late

LOOK_S = 0.05
"""Seconds between two looks at whether anybody still wants the result."""


class Waiting:
    """One piece of work on a thread of its own. The thread lives until the work ends, which may be
    never: it is a daemon, and nobody waits for it any longer."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._done = threading.Event()
        self._result: Any = None
        self._error: BaseException | None = None
        context = contextvars.copy_context()
        thread = threading.Thread(
            target=context.run, args=(self._run,), name="isthmus tool", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:
            raise Overloaded(f"a tool cannot be run now: {error}") from None

    def result(self, limits: ToolLimits, check: Check) -> Any:
        """What the work returned or raised. ToolFailed if it takes too long, and what `check`
        raises."""
        end = time.monotonic() + limits.deadline_s
        while not self._done.wait(min(LOOK_S, max(end - time.monotonic(), 0))):
            check()
            if time.monotonic() >= end:
                raise too_late(limits)
        if self._error is not None:
            raise self._error
        return self._result

    def _run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:
            self._error = error
        self._done.set()
