"""The answer to one message, piece by piece, while the guest works in another thread."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from isthmus.actor.host_api import Exchange

if TYPE_CHECKING:
    from isthmus.actor.actor import Actor

_STOP_GRACE_S = 2.0
"""How long a guest may take to finish by itself after its caller stopped listening."""

CANCEL_AGAIN_S = 0.02
"""A message's thread may not be inside the guest yet when it is cancelled first."""

Pieces: TypeAlias = "queue.SimpleQueue[str | Reply | BaseException]"


@dataclass(frozen=True)
class Reply:
    """What an actor answered to one message."""

    data: bytes
    """What the guest set as its reply, or else all that it emitted."""
    n_tokens: int
    """Tokens that it prefilled and decoded."""
    seconds: float
    """Wall-clock time."""

    @property
    def text(self) -> str:
        """The answer as UTF-8; bytes that are none become U+FFFD."""
        return self.data.decode(errors="replace")


class Stream(Iterator[str]):
    """The pieces of one answer, as text that never cuts a character; `reply` once it has ended.

    An iterator that is dropped before its end asks the guest to stop, as `close` does.
    """

    def __init__(self, actor: Actor, message: bytes, deadline_s: float | None) -> None:
        pieces: Pieces = queue.SimpleQueue()
        self._actor = actor
        self._pieces = pieces
        self._exchange = exchange = Exchange(message, pieces.put)
        self._reply: Reply | None = None
        self._ended = threading.Event()
        weakref.finalize(self, setattr, exchange, "stopping", True)
        work = partial(actor._work, exchange, pieces, deadline_s, self._ended)
        if not actor.device.compute_thread.try_host(work):
            threading.Thread(target=work, name=f"isthmus {actor.guest.name}", daemon=True).start()

    @property
    def reply(self) -> Reply:
        """The whole answer; RuntimeError before the stream has ended."""
        if self._reply is None:
            raise RuntimeError("the answer is not complete")
        return self._reply

    def __next__(self) -> str:
        if self._ended.is_set() and self._pieces.empty():
            raise StopIteration
        try:
            piece = self._pieces.get()
        except BaseException:  # Ctrl-C: the message ends, then whoever waits hears of it
            self.close()
            raise
        if isinstance(piece, str):
            return piece
        self._ended.wait()
        if isinstance(piece, Reply):
            self._reply = piece
            raise StopIteration
        raise piece

    def close(self) -> None:
        """Asks the guest to stop and waits; it is cut off if it does not within two seconds."""
        if self._ended.is_set():
            return
        self._exchange.stopping = True
        if not self._ended.wait(_STOP_GRACE_S):
            self._actor.cancel()
        while not self._ended.wait(CANCEL_AGAIN_S):
            self._actor.cancel()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
