"""One message: what came in, what goes out, what it may still use, and how it ended."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from isthmus.abi import Errno
from isthmus.errors import (
    Cancelled,
    ContextFull,
    GuestFailed,
    IsthmusError,
    LimitExceeded,
    Overloaded,
)
from isthmus.units import MIB, format_nbytes

STOP_GRACE_S = 2.0
"""How long a guest may take to finish by itself after its caller stopped listening."""


@dataclass(frozen=True)
class Reply:
    """What an actor answered to one message."""

    data: bytes
    """What the guest set as its reply, or else all that it emitted."""
    n_tokens: int
    """Tokens that it prefilled and decoded."""
    seconds: float
    """Wall-clock time from its begin, without the wait for a thread."""
    limits_reached: tuple[str, ...] = ()
    """Names of the `Limits` that refused something, though the guest then finished by itself."""

    @property
    def text(self) -> str:
        """The answer as UTF-8; bytes that are none become U+FFFD."""
        return self.data.decode(errors="replace")


@dataclass
class Exchange:
    """One message being handled."""

    message: bytes
    sink: Callable[[str], None]
    reply: bytes | None = None
    tool_result: bytes | None = None
    emitted: list[bytearray] = field(default_factory=list)
    """What it emitted, in parts of about a MiB: one that grew would be copied again and again."""
    n_outputs: int = 0
    """How often it emitted, replied or logged."""
    output_nbytes: int = 0
    held_nbytes: int = 0
    """What of the memory of all actors its output counts as."""
    tokens_in: int = 0
    tokens_out: int = 0
    fuel: int = 0
    limits_reached: dict[str, int] = field(default_factory=dict)
    """What each limit refused: how often."""
    last_limit: str = ""
    """The limit that refused last, and how much it allows."""
    refusal: Overloaded | None = None
    """Why all actors together could not have what the guest asked for last."""
    explained: dict[Errno, IsthmusError] = field(default_factory=dict)
    """What an errno meant when the guest got it last, where its text is of use to the caller."""
    last_warning: str = ""
    """What the guest logged last as a warning or an error: often why it gives up."""
    stopping: bool = False
    """The guest is asked to finish."""
    cut_off: bool = False
    """The guest is not asked."""
    ended: bool = False
    """What came of the message is known."""
    abandoned_at: float | None = None
    """Since when nobody listens, on the clock of time.monotonic."""

    def __post_init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def abandon(self) -> None:
        """Nobody listens any longer: the guest is asked to finish, and cut off after a while."""
        if not self.ended:
            self.stopping = True
            self.abandoned_at = time.monotonic()

    @property
    def is_unwanted(self) -> bool:
        """Whether the guest is to be cut off."""
        since = self.abandoned_at
        return self.cut_off or (since is not None and time.monotonic() - since > STOP_GRACE_S)

    @property
    def n_tokens(self) -> int:
        """Tokens prefilled and decoded."""
        return self.tokens_in + self.tokens_out

    @property
    def answer(self) -> bytes:
        """What the guest set as its reply, or else all that it emitted."""
        return b"".join(self.emitted) if self.reply is None else self.reply

    def emit(self, data: bytes) -> None:
        """Passes on whatever characters are complete."""
        if self.emitted and len(self.emitted[-1]) < MIB:
            self.emitted[-1] += data
        else:
            self.emitted.append(bytearray(data))
        if text := self._decoder.decode(data):
            self.sink(text)

    def finish(self) -> None:
        """Passes on a character that was begun and never finished, as U+FFFD."""
        if text := self._decoder.decode(b"", final=True):
            self.sink(text)

    def forget(self) -> None:
        """Lets go of what it said, once its end is told: errors may keep the exchange for long."""
        self.emitted.clear()
        self.message, self.reply, self.tool_result = b"", None, None

    def reached(self, limit: str, allowed: float | None = None) -> None:
        """Notes that a limit, by its name in `Limits`, refused something."""
        self.limits_reached[limit] = self.limits_reached.get(limit, 0) + 1
        self.last_limit = limit if allowed is None else f"{limit}, {_shown(limit, allowed)}"


def failure(code: int, exchange: Exchange) -> IsthmusError:
    """What on_message's errno means to the caller."""
    for errno, explained in exchange.explained.items():
        if errno == code:
            return explained
    if code == Errno.ECONTEXT:
        return ContextFull(
            "the session's context has no room for this message; "
            "give the guest a larger n_ctx, or begin a new conversation"
        )
    if code == Errno.ECANCELED:
        return Cancelled("the message was stopped before it was answered")
    if exchange.refusal is not None and code in (Errno.ELIMIT, Errno.ENOMEM):
        return exchange.refusal
    if exchange.limits_reached and code in (Errno.ELIMIT, Errno.ENOMEM):
        limit = list(exchange.limits_reached)[-1]
        return LimitExceeded(
            f"the guest gave up: it reached its limit of {exchange.last_limit}", limit
        )
    return GuestFailed(code, exchange.last_warning)


def _shown(limit: str, allowed: float) -> str:
    if limit.endswith("_nbytes"):
        return format_nbytes(allowed)
    return f"{allowed:g}" + (" for prompt and answer together" if limit == "tokens" else "")
