"""One message: what came in, what goes out, what it waits for, and when it is to end.

What a guest does while an actor begins (`_initialize`, `on_replay`) is a message without text.

=========  =======================================================================================
state      what holds
=========  =======================================================================================
sent       it waits for a place (`Capacity.running`), or to be begun
begun      its work is driven by the loop, or by a thread of the slow lane; `waits_for` says what
           it waits for, None while its guest runs
ended      what came of it is on its way to whoever sent it
=========  =======================================================================================

`stop`, `abandon` and `cut_off` may be called from any thread; the loop is then told to look.
"""

from __future__ import annotations

import codecs
import threading
import time
from collections import deque
from collections.abc import Coroutine
from typing import Any

from isthmus.abi import Errno
from isthmus.actor.reply import Deliver, Piece, Reply
from isthmus.actor.shares import Share
from isthmus.errors import (
    Cancelled,
    ContextFull,
    DeadlineExceeded,
    GuestFailed,
    GuestFault,
    IsthmusError,
    LimitExceeded,
    Overloaded,
)
from isthmus.units import MIB, format_nbytes

STOP_GRACE_S = 2.0
"""Seconds that a guest may take to finish by itself after its caller stopped listening."""
_PIECE_NBYTES = MIB
"""Bytes of output that are kept in one part: one that grew would be copied again and again."""


def _nobody(_piece: Piece) -> None:
    pass


class Message:
    """See the module."""

    def __init__(
        self,
        data: bytes,
        guest: str,
        share: Share,
        *,
        deadline: float | None = None,
        deliver: Deliver = _nobody,
    ) -> None:
        """`guest` is its name, for errors; `deadline` is a time of time.monotonic."""
        self.data = data
        self.guest = guest
        self.share = share
        self.sent = time.monotonic()
        self.deadline = deadline
        self._deliver = deliver

        self.work: Coroutine[Any, Any, None]
        """What the loop drives."""
        self.waits_for: object | None = None
        """The `Ask` that is to be answered."""
        self.is_slow = False
        """Whether its guest once computed for longer than a time slice."""
        self.begun = False
        self.has_place = False
        """Whether it counts among those that run (`Capacity.running`)."""
        self.ended = threading.Event()
        self.outcome: Reply | BaseException | None = None

        self.stopping = False
        """The guest is asked to finish."""
        self.is_cut_off = False
        """The guest is not asked."""
        self.abandoned_at: float | None = None
        """Since when nobody listens, on the clock of time.monotonic."""

        self.pieces: deque[str] = deque()
        """Text that was emitted and not delivered yet."""
        self.reply: bytes | None = None
        self.tool_result: bytes | None = None
        self.n_outputs = 0
        """How often the guest emitted, replied or logged."""
        self.output_nbytes = 0
        self.held_nbytes = 0
        """What of the memory of all actors its output counts as."""
        self.tokens_in = 0
        self.tokens_out = 0
        self.fuel = 0
        self.limits_reached: dict[str, int] = {}
        """What each limit refused: how often."""
        self.last_limit = ""
        """The limit that refused last, and how much it allows."""
        self.refusal: Overloaded | None = None
        """Why all actors together could not have what the guest asked for last."""
        self.explained: dict[Errno, IsthmusError] = {}
        """What an errno meant when the guest got it last, if its text is of use to the caller."""
        self.last_warning = ""
        """What the guest logged last as a warning or an error: often why it gives up."""
        self._emitted: list[bytearray] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    # ------------------------------------------------------------------ whether it goes on

    def check(self) -> None:
        """Raises Cancelled or DeadlineExceeded if the guest is to be cut off now."""
        if self.is_cut_off or self.abandoned_at is not None:
            if self.is_cut_off or time.monotonic() >= self.abandoned_at + STOP_GRACE_S:
                raise Cancelled(f"the call of {self.guest} was cancelled")
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise DeadlineExceeded(f"{self.guest} did not finish in time")

    def check_going_on(self) -> None:
        """As `check`; GuestFault(ECANCELED) if the guest is asked to finish."""
        self.check()
        if self.stopping:
            raise GuestFault(Errno.ECANCELED)

    def require_begin(self) -> None:
        """DeadlineExceeded or Cancelled if it is to end before it has begun."""
        if self.stopping or self.is_cut_off:
            raise Cancelled("the message was stopped before it was begun")
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise DeadlineExceeded("the message's time was over before there was a place for it")

    @property
    def ends_at(self) -> float | None:
        """When it is to be cut off, as far as is known now, on the clock of time.monotonic."""
        if self.abandoned_at is None:
            return self.deadline
        grace = self.abandoned_at + STOP_GRACE_S
        return grace if self.deadline is None else min(grace, self.deadline)

    def abandon(self) -> None:
        """Nobody listens any longer: the guest is asked to finish, and cut off after a while."""
        if not self.ended.is_set():
            self.abandoned_at = time.monotonic()
            self.stopping = True

    # ------------------------------------------------------------------ what goes out

    @property
    def n_tokens(self) -> int:
        """Tokens prefilled and decoded."""
        return self.tokens_in + self.tokens_out

    @property
    def answer(self) -> bytes:
        """What the guest set as its reply, or else all that it emitted."""
        return b"".join(self._emitted) if self.reply is None else self.reply

    def emit(self, data: bytes) -> None:
        """Passes on whatever characters are complete."""
        if self._emitted and len(self._emitted[-1]) < _PIECE_NBYTES:
            self._emitted[-1] += data
        else:
            self._emitted.append(bytearray(data))
        if text := self._decoder.decode(data):
            self.pieces.append(text)

    def finish(self) -> None:
        """Passes on a character that was begun and never finished, as U+FFFD."""
        if text := self._decoder.decode(b"", final=True):
            self.pieces.append(text)

    def end(self, outcome: Reply | BaseException) -> None:
        """Notes what came of it. Lets go of what was said: errors may keep the message for long."""
        self._emitted.clear()
        self.data, self.reply, self.tool_result = b"", None, None
        self.outcome = outcome

    def deliver(self) -> None:
        """Gives its text, and what came of it, to whoever sent it. Only on the loop's thread."""
        outcome = self.outcome  # looked at first: nothing is emitted after it
        if self.pieces:
            self._deliver("".join(self.pieces.popleft() for _ in range(len(self.pieces))))
        if outcome is not None and not self.ended.is_set():
            self.ended.set()
            self._deliver(outcome)

    # ------------------------------------------------------------------ limits and failures

    def failure(self, code: Errno | int) -> IsthmusError:
        """What an errno that the guest ended with means to the caller."""
        for errno, explained in self.explained.items():
            if errno == code:
                return explained
        if code == Errno.ECONTEXT:
            return ContextFull(
                "the session's context has no room for this message; "
                "give the guest a larger n_ctx, or begin a new conversation"
            )
        if code == Errno.ECANCELED:
            return Cancelled("the message was stopped before it was answered")
        if self.refusal is not None and code in (Errno.ELIMIT, Errno.ENOMEM):
            return self.refusal
        if self.limits_reached and code in (Errno.ELIMIT, Errno.ENOMEM):
            limit = list(self.limits_reached)[-1]
            return LimitExceeded(
                f"the guest gave up: it reached its limit of {self.last_limit}", limit
            )
        return GuestFailed(code, self.last_warning)

    def reached(self, limit: str, allowed: float | None = None) -> None:
        """Notes that a limit, by its name in `Limits`, refused something."""
        self.limits_reached[limit] = self.limits_reached.get(limit, 0) + 1
        self.last_limit = limit if allowed is None else f"{limit}, {_shown(limit, allowed)}"

    def note_outcome(self, outcome: Reply | BaseException) -> None:
        """Counts a limit that ended the message among those that it reached."""
        if isinstance(outcome, LimitExceeded) and outcome.limit not in self.limits_reached:
            self.reached(outcome.limit)


def _shown(limit: str, allowed: float) -> str:
    if limit.endswith("_nbytes"):
        return format_nbytes(allowed)
    return f"{allowed:g}" + (" for prompt and answer together" if limit == "tokens" else "")
