"""Messages that can go on, and in which order: those last whose guests compute for long.

A step waits until everybody has gone on, so that whoever is about to ask has asked. That is right
as long as guests take microseconds. If going on takes long, each message is timed, and those whose
guests take milliseconds go on a few at a time, between the steps of all others.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable

from isthmus.actor.ask import Answer

_LONG_S = 0.01
"""Seconds of a turn in which all go on; if they take longer, each is timed from then on."""
_HEAVY_S = 0.0003
"""Seconds of a processor between two asks after which a guest keeps nobody else waiting. A thread
that waits for a processor or for the interpreter says nothing of its guest."""
_UNTIMED = 256
"""Turns without a clock after one in which no guest was heavy: one by one nobody helps them."""


class Ready:
    """See the module. Only for the loop's thread."""

    def __init__(
        self,
        advance: Callable[[list[Answer]], None],
        others_ask: Callable[[], bool],
    ) -> None:
        """`advance` has messages go on. `others_ask()` says whether a message that is not heavy
        waits for a model."""
        self._advance = advance
        self._others_ask = others_ask
        self._answers: deque[Answer] = deque()
        self._heavy: deque[Answer] = deque()
        self._times = False
        """Whether each message is timed."""
        self._n_untimed = 0
        """Turns until it may be."""

    def __bool__(self) -> bool:
        return bool(self._answers or self._heavy)

    def append(self, answer: Answer) -> None:
        """Takes what a message goes on with."""
        self._answers.append(answer)

    def extend(self, answers: Iterable[Answer]) -> None:
        """Takes several."""
        self._answers.extend(answers)

    def resume(self) -> None:
        """Has messages go on: all, but for heavy ones while others ask for anything."""
        if self._times:
            self._resume_timed()
            return
        start, answers = time.monotonic(), [*self._answers]
        self._answers.clear()
        self._advance(answers)
        self._n_untimed -= 1
        self._times = self._n_untimed <= 0 and time.monotonic() - start > _LONG_S

    def _resume_timed(self) -> None:
        answers, heavy = self._answers, self._heavy
        self._times = False
        for _ in range(len(answers)):
            answer = answers.popleft()
            if answer.message.is_heavy:
                heavy.append(answer)
            else:
                self._advance_timed(answer)
        self._times |= bool(heavy)
        if not self._times:  # they are many, and each is quick
            self._n_untimed = _UNTIMED
        if heavy and not self._others_ask():
            together = [*heavy]
            heavy.clear()
            self._advance(together)
            return
        until = time.thread_time() + _LONG_S
        for _ in range(len(heavy)):
            self._advance_timed(heavy.popleft())
            if time.thread_time() >= until and self._others_ask():
                return

    def _advance_timed(self, answer: Answer) -> None:
        start = time.thread_time()
        self._advance([answer])
        answer.message.is_heavy = is_heavy = time.thread_time() - start > _HEAVY_S
        self._times |= is_heavy
