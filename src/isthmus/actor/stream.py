"""The answer to one message, piece by piece, while the guest works in another thread."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeAlias

from isthmus.actor.exchange import STOP_GRACE_S, Exchange, Reply
from isthmus.actor.workers import Ticket
from isthmus.errors import Cancelled, DeadlineExceeded

if TYPE_CHECKING:
    from isthmus.actor.actor import Actor

CANCEL_AGAIN_S = 0.02
"""A message's thread may not be inside the guest yet when it is cancelled first."""

Pieces: TypeAlias = "queue.SimpleQueue[str | Reply | BaseException]"
Deliver: TypeAlias = "Callable[[str | Reply | BaseException], None]"
"""Takes each piece of an answer, and then what came of it, on the thread that handles it."""


class Message:
    """A message on its way: waiting for a thread, being handled, or ended."""

    def __init__(
        self,
        data: bytes,
        deadline_s: float | None,
        deliver: Deliver | None = None,
        *,
        whole: bool = False,
    ) -> None:
        """`whole`: nobody takes pieces, and whoever waits is woken once, at the end."""
        self.pieces: Pieces = queue.SimpleQueue()
        self._deliver: Deliver = deliver or (self._deliver_outcome if whole else self.pieces.put)
        self.exchange = Exchange(data, self._deliver)
        self.sent = time.monotonic()
        endless = deadline_s is None or deadline_s > threading.TIMEOUT_MAX / 2
        self.deadline = None if endless or deadline_s is None else self.sent + deadline_s
        """On the clock of time.monotonic."""
        self.ticket: Ticket | None = None
        self.ended = threading.Event()

    def end(self, outcome: Reply | BaseException) -> None:
        """Puts what came of it behind the last piece."""
        self.exchange.ended = True
        self.ended.set()
        self._deliver(outcome)

    def _deliver_outcome(self, piece: str | Reply | BaseException) -> None:
        if not isinstance(piece, str):
            self.pieces.put(piece)

    def withdraw(self) -> bool:
        """Takes it back where it still waits for a thread."""
        return self.ticket is not None and self.ticket.withdraw()

    def require_time(self) -> None:
        """DeadlineExceeded where its time is over before it began, Cancelled if it is unwanted."""
        if self.exchange.stopping:
            raise Cancelled("the message was stopped before it was begun")
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise DeadlineExceeded("the message's time was over before there was a thread for it")


class Stream(Iterator[str]):
    """The pieces of one answer, as text that never cuts a character; `reply` once it has ended.

    An iterator that is dropped before its end asks the guest to stop, as `close` does, and waits
    for nothing.
    """

    def __init__(self, actor: Actor, message: Message) -> None:
        self._actor = actor
        self._message = message
        self._reply: Reply | None = None
        self._told = False
        """How it ended, to whoever iterates."""
        weakref.finalize(self, message.exchange.abandon).atexit = False

    @property
    def ended(self) -> bool:
        """Whether the message was handled, or given up."""
        return self._message.ended.is_set()

    @property
    def reply(self) -> Reply:
        """The whole answer; RuntimeError before the stream has ended."""
        if self._reply is None:
            raise RuntimeError("the answer is not complete")
        return self._reply

    def __next__(self) -> str:
        if self._told:
            raise StopIteration
        try:
            piece = self._next_piece()
        except BaseException:  # Ctrl-C: the message ends, then whoever waits hears of it
            self.close()
            raise
        if isinstance(piece, str):
            return piece
        self._told = True
        if isinstance(piece, Reply):
            self._reply = piece
            raise StopIteration
        raise piece

    def close(self) -> None:
        """Asks the guest to stop and waits; it is cut off if it does not within two seconds."""
        message = self._message
        if message.ended.is_set():
            return
        message.exchange.stopping = True
        self._actor.interrupt()
        if not self._actor.abandon(message) and not message.ended.wait(STOP_GRACE_S):
            self._actor.cancel()
        while not message.ended.wait(CANCEL_AGAIN_S):
            self._actor.cancel()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _next_piece(self) -> str | Reply | BaseException:
        """Waits for it; a message whose time is over while it waits for a thread is taken back."""
        message = self._message
        if message.deadline is not None:
            try:
                return message.pieces.get(timeout=max(message.deadline - time.monotonic(), 0))
            except queue.Empty:
                self._actor.abandon(message)
        return message.pieces.get()
