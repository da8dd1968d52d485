"""One message: what came in, what goes out, what it waits for, and when it is to end.

What a guest does while an actor begins (`_initialize`, `on_replay`) is a message without text.

=========  =======================================================================================
state      what holds
=========  =======================================================================================
sent       it waits for a place (`Capacity.running`), or to be begun
begun      its work is driven by the loop, or by a thread of the slow lane; `waits_for` says what
           it waits for, None while its guest runs
ended      its outcome is known, and was given to whoever sent it
=========  =======================================================================================

Any thread may set `stopping` and `is_cut_off` or call `abandon`, and then `Loop.look_at`.
"""

from __future__ import annotations

import codecs
import threading
import time
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from isthmus.abi import Errno
from isthmus.actor.content import BinaryFile
from isthmus.actor.paused import Paused
from isthmus.actor.reading import ReadAnswer
from isthmus.actor.reply import Deliver, Piece, Reply, ToolCall
from isthmus.actor.shares import Share
from isthmus.actor.undoing import Undoable, undo_all
from isthmus.actor.visit import Visits
from isthmus.errors import (
    Cancelled,
    ContextFull,
    DeadlineExceeded,
    DeviceFailed,
    GuestFailed,
    GuestFault,
    IsthmusError,
    LimitExceeded,
    Overloaded,
)
from isthmus.units import MIB, format_nbytes

STOP_GRACE_S = 2.0
"""Seconds that a guest may take to finish by itself after its caller stopped listening."""
AGAIN_S = 0.02
"""Seconds until a message that is to end is cut off again, by whoever waits for its end."""
_PIECE_NBYTES = MIB
"""Bytes of output that are kept in one part: one that grew would be copied again and again."""
_JOINED = 4096
"""Characters from which on pieces are not joined before they are delivered."""
_DELIVERED = MIB
"""Characters after which the rest is delivered at another turn of the loop."""


def _nobody(_piece: Piece) -> None:
    pass


@dataclass(eq=False, slots=True)
class Message:
    """See the module."""

    data: bytes
    guest: str
    """The name of the actor's guest, for errors."""
    share: Share
    """The actor's account, by which it is decided who goes first."""
    deadline: float | None = None
    """When it is cut off, on the clock of time.monotonic."""
    tell: Deliver = _nobody
    """Called with each piece of the answer, then with its outcome; see `deliver`."""
    wants_text: bool = True
    """Whether what is emitted is told as it comes, and not only the outcome."""
    file: BinaryFile | None = None
    """What a command reads instead of `data`."""
    errors: str = "replace"
    """What is told of bytes that are no UTF-8, as `bytes.decode` has it."""
    finishes: bool = True
    """Whether its guest can be asked to finish: a command is cut off at once."""
    sent: float = field(default_factory=time.monotonic)
    begun_at: float = 0.0
    """When its guest was called first, on the clock of time.monotonic."""
    deadline_of: str = "deadline_s"
    """The setting that the deadline comes from, for errors."""

    work: Coroutine[Any, Any, None] | None = None
    """What the loop drives."""
    waits_for: object | None = None
    """The `Ask` that is to be answered."""
    is_slow: bool = False
    """Whether its guest lately computed for longer than a time slice."""
    is_heavy: bool = False
    """Whether its guest lately computed for so long that others go on first; see `ready.py`."""
    begun: bool = False
    is_counted: bool = False
    """Whether it has entered `Places`: from then on the loop ends it, whatever its sender does."""
    is_known: bool = False
    """Whether the loop has taken it out of its mail."""
    has_place: bool = False
    """Whether it counts among those that run (`Capacity.running`)."""
    gave_place: bool = False
    """Whether it is in a tool, and gets its place again when the tool returns."""
    ended: threading.Event = field(default_factory=threading.Event)
    outcome: Reply | BaseException | None = None

    stopping: bool = False
    """Whether the guest is asked to finish."""
    is_cut_off: bool = False
    """Whether the guest is ended without being asked."""
    abandoned_at: float | None = None
    """When its caller stopped listening, on the clock of time.monotonic."""

    pieces: deque[str] = field(default_factory=deque)
    """Text that was emitted and not delivered yet."""
    reply: bytes | None = None
    tool_result: bytes | None = None
    """What the last tool gave, or the text of its failure."""
    tool_calls: list[ToolCall] = field(default_factory=list)
    undoable: list[Undoable] = field(default_factory=list)
    """Runs of tools that can be taken back, oldest first."""
    answer_in: ReadAnswer | None = None
    """The answer of a model that the guest has the host read."""
    inherited: Paused | None = None
    """What it was when it paused elsewhere, if it goes on from there."""
    visits: Visits = field(default_factory=Visits)
    """What others want to do while its guest is paused."""
    n_outputs: int = 0
    """How often the guest emitted, replied or logged."""
    output_nbytes: int = 0
    held_nbytes: int = 0
    """Bytes that its output takes of the budget of all actors."""
    tokens_in: int = 0
    tokens_out: int = 0
    fuel: int = 0
    limits_reached: dict[str, int] = field(default_factory=dict)
    """How often each limit refused something."""
    last_limit: str = ""
    """The limit that refused last, and how much it allows."""
    refusal: Overloaded | None = None
    """Why the budget of all actors refused what the guest asked for last."""
    explained: dict[Errno, IsthmusError] = field(default_factory=dict)
    """Errors whose text is of use to the caller, by the errno that the guest got for them."""
    last_warning: str = ""
    """What the guest logged last as a warning or an error: often why it gives up."""
    _emitted: list[bytearray] = field(default_factory=list)
    _decoder: codecs.BufferedIncrementalDecoder = field(init=False)

    def __post_init__(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")(errors=self.errors)
        assert isinstance(decoder, codecs.BufferedIncrementalDecoder)
        self._decoder = decoder

    # ------------------------------------------------------------------ whether it goes on

    def check(self) -> None:
        """Raises Cancelled or DeadlineExceeded if the guest is to be cut off now."""
        since = self.abandoned_at
        is_over = since is not None and time.monotonic() >= since + STOP_GRACE_S
        if self.is_cut_off or is_over or (self.stopping and not self.finishes):
            raise Cancelled(f"the call of {self.guest} was cancelled")
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise DeadlineExceeded(f"{self.guest} did not finish within {self._allowed}")

    def check_going_on(self) -> None:
        """As `check`; GuestFault(ECANCELED) if the guest is asked to finish."""
        deadline = self.deadline  # looked at here: this is asked for each token
        is_late = deadline is not None and time.monotonic() >= deadline
        if is_late or self.stopping or self.is_cut_off:
            self.check()
        if self.stopping:
            raise GuestFault(Errno.ECANCELED)

    def require_begin(self) -> None:
        """DeadlineExceeded or Cancelled if it is to end before it has begun."""
        if self.stopping:
            raise Cancelled("the message was stopped before it was begun")
        if self.is_cut_off:
            raise Cancelled(f"the call of {self.guest} was cancelled")
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise DeadlineExceeded(
                f"there was no place for the message within {self._allowed}: others are handled"
            )

    @property
    def _allowed(self) -> str:
        """The time that it has, with the name of its limit."""
        assert self.deadline is not None
        return f"{max(self.deadline - self.sent, 0.0):.3g} s ({self.deadline_of})"

    @property
    def ends_at(self) -> float | None:
        """When it is to be cut off, as far as is known now, on the clock of time.monotonic."""
        if self.abandoned_at is None:
            return self.deadline
        grace = self.abandoned_at + STOP_GRACE_S
        return grace if self.deadline is None else min(grace, self.deadline)

    def abandon(self) -> None:
        """Nobody listens any longer: the guest is asked to finish, and cut off after a while."""
        if self.abandoned_at is None and not self.ended.is_set():
            self.abandoned_at = time.monotonic()
            self.stopping = True

    def resume(self, value: Any, error: BaseException | None) -> Any:
        """Has its work go on with the answer to what it asked for, until it asks again or ends.

        What it asks for; None at its end; the error that its work raised, which is a fault of ours.
        """
        work, self.waits_for = self.work, None
        assert work is not None
        if isinstance(error, DeviceFailed) and error.errno is not None:
            self.explained[error.errno] = error
        try:
            return work.send(value) if error is None else work.throw(error)
        except StopIteration:
            return None
        except BaseException as unexpected:
            return unexpected

    # ------------------------------------------------------------------ what goes out

    @property
    def n_tokens(self) -> int:
        """Tokens prefilled and decoded."""
        return self.tokens_in + self.tokens_out

    @property
    def is_short(self) -> bool:
        """Whether `seal` costs next to nothing."""
        return len(self._emitted) < 2

    @property
    def emitted(self) -> bytes:
        """All that the guest emitted."""
        return b"".join(self._emitted)

    @property
    def answer(self) -> bytes:
        """What the guest set as its reply, or else all that it emitted."""
        return self.emitted if self.reply is None else self.reply

    def take_emitted(self, data: bytes) -> None:
        """Takes what a guest emitted before it paused; whoever listens was told of it."""
        self._emitted = [bytearray(data)] if data else []
        self._decoder.decode(data)

    def as_reply(self, seconds: float) -> Reply:
        """What whoever sent it gets, `seconds` after it was begun."""
        reached, called = tuple(self.limits_reached), tuple(self.tool_calls)
        seconds += self.inherited.seconds if self.inherited else 0.0
        return Reply(self.answer, self.n_tokens, seconds, reached, called, self.tokens_out)

    def take_back(self) -> None:
        """Has tools take back what they did for it, after it was undone. Waits for them."""
        undo_all(self.undoable)

    def emit(self, data: bytes | memoryview) -> None:
        """Passes on whatever characters are complete."""
        if self._emitted and len(self._emitted[-1]) < _PIECE_NBYTES:
            self._emitted[-1] += data
        else:
            self._emitted.append(bytearray(data))
        if not self.wants_text:
            return
        if type(data) is bytes and data.isascii() and not self._decoder.buffer:
            text = data.decode()  # nearly every token: the decoder is Python code
        else:
            text = self._decoder.decode(data)
        if text:
            self.pieces.append(text)

    def seal(self) -> None:
        """Makes one piece of memory of the answer, once the guest has returned."""
        self.reply = self.answer
        self._emitted.clear()

    def forget_output(self) -> None:
        """Frees what the guest said, since nobody will get an answer. Its text is delivered."""
        self._emitted.clear()
        self.reply = None

    def finish(self) -> None:
        """Passes on a character that was begun and never finished, as U+FFFD."""
        if text := self._decoder.decode(b"", final=True):
            self.pieces.append(text)

    def end(self, outcome: Reply | BaseException) -> None:
        """Notes its outcome and frees its bytes: an error may keep the message for long."""
        self.forget_output()
        self.explained.clear()
        self.refusal = None
        self.data, self.tool_result, self.answer_in = b"", None, None
        self.outcome = outcome

    def deliver(self) -> bool:
        """Gives its text, and its outcome, to whoever sent it. Only on the loop's thread.

        True if much text is left, which others should not wait for: call it again.
        """
        outcome = self.outcome  # looked at first: nothing is emitted after it
        pieces, more, n_left = self.pieces, False, _DELIVERED
        n = len(pieces)  # a guest in the slow lane may emit faster than its listener takes it
        if n == 1 and outcome is None:  # nearly always
            self.tell(pieces.popleft())
            return False
        try:
            while n and not more:
                text = pieces.popleft()
                n -= 1
                while n and len(text) < _JOINED:
                    text += pieces.popleft()
                    n -= 1
                n_left -= len(text)
                self.tell(text)
                more = n > 0 and n_left <= 0
        finally:
            if outcome is not None and not more and not self.ended.is_set():
                self.ended.set()
                tell, self.tell = self.tell, _nobody
                self.outcome = None  # an error keeps who raised it, whose finalizer keeps this
                tell(outcome)
        return more

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


def time_after(seconds: float | None) -> float | None:
    """The time of time.monotonic after so many seconds; None if they are None, or centuries."""
    endless = seconds is None or seconds > threading.TIMEOUT_MAX / 2
    return None if endless or seconds is None else time.monotonic() + seconds
