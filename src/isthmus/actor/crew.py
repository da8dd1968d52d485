"""Threads that resume guests side by side, as long as that takes less time than one by one.

A guest that looks at 128,256 logits computes for tens of microseconds before it asks for the next
token, and the device waits meanwhile. Guests run without the interpreter's lock, so several threads
help if guests compute for long, and only pass the lock around if they do not. Which of the two it
is depends on guests, vocabulary and machine, so it is measured.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from isthmus.actor.ask import Answer
from isthmus.actor.pool import Pool
from isthmus.device.compute_thread import ComputeThread
from isthmus.errors import Overloaded

_MAX = min(4, os.cpu_count() or 1)
"""Threads that resume guests, the loop's among them."""
_FEW = 8
"""Guests from which on other threads are asked for help."""
_SHORT_S = 25e-6
"""Seconds of a guest's turn, with all that the host does for it, below which nobody could help."""
_ROUNDS, _TRIED = 64, 2
"""Rounds after which the other way is tried again, and for how many."""
_WEIGHT = 0.2
"""Weight of the last round in what a turn takes."""


class Crew:
    """See the module. Only for the loop's thread."""

    def __init__(self, thread: ComputeThread) -> None:
        """`thread` is the loop's. While it waits for others it runs jobs, or they might wait for
        it."""
        self._thread = thread
        self._pool = Pool("isthmus guest", _MAX - 1) if _MAX > 1 else None
        self._n_rounds = _TRIED
        self._taken_s: dict[bool, float] = {}
        """Seconds that a turn took lately, by whether others helped."""
        self._tried = False
        """The way that is tried now: whether others help."""

    def resume(self, answers: Sequence[Answer]) -> list[Any]:
        """Resumes messages; gives what each asks for, as `Message.resume` does, in their order."""
        n = len(answers)
        if n < _FEW:
            return [message.resume(value, error) for message, value, error in answers]
        helped, start = self._is_helped(), time.perf_counter()
        if helped:
            asks = self._resume_together(answers)
        else:
            asks = [message.resume(value, error) for message, value, error in answers]
        seconds = (time.perf_counter() - start) / n
        before = self._taken_s.get(helped, seconds)
        if self._n_rounds % _ROUNDS == 0:  # guests may do other things than when it was last tried
            before = seconds
        self._taken_s[helped] = before + _WEIGHT * (seconds - before)
        return asks

    def _is_helped(self) -> bool:
        """Whether others help in this round."""
        alone, together = self._taken_s.get(False), self._taken_s.get(True)
        if self._pool is None or alone is None or (alone < _SHORT_S and together is None):
            return False
        self._n_rounds += 1
        if together is None:
            return True
        n = self._n_rounds % _ROUNDS
        if n == 0:
            self._tried = together >= alone
        return self._tried if n < _TRIED else together < alone

    def _resume_together(self, answers: Sequence[Answer]) -> list[Any]:
        assert self._pool is not None
        round_ = _Round(answers, partial(self._thread.post, _nothing))
        try:
            for _ in range(_MAX - 1):
                self._pool.submit(round_.help)
        except Overloaded:
            pass  # fewer help, or nobody
        round_.work()
        round_.close()
        while round_.has_helpers():
            self._thread.serve()
        return round_.asks


class _Round:
    """Messages that are resumed by several threads, each by the next one that is free."""

    def __init__(self, answers: Sequence[Answer], wake: Callable[[], None]) -> None:
        """`wake` is called by the last helper, if the loop waits for it."""
        self._answers = answers
        self._wake = wake
        self._numbers = iter(range(len(answers)))
        self._lock = threading.Lock()
        self._is_closed = False
        self._n_helpers = 0
        self.asks: list[Any] = [None] * len(answers)

    def work(self) -> None:
        """Resumes messages until none is left."""
        for number in self._numbers:
            message, value, error = self._answers[number]
            self.asks[number] = message.resume(value, error)

    def help(self) -> None:
        """The same, on another thread; nothing if it comes too late."""
        with self._lock:
            if self._is_closed:
                return
            self._n_helpers += 1
        self.work()
        with self._lock:
            self._n_helpers -= 1
            is_last = self._n_helpers == 0
        if is_last:
            self._wake()  # the loop may wait for that, or not any longer

    def has_helpers(self) -> bool:
        """Whether others are still resuming messages."""
        with self._lock:
            return self._n_helpers > 0

    def close(self) -> None:
        """Lets nobody begin to help."""
        with self._lock:
            self._is_closed = True


def _nothing() -> None:
    pass
