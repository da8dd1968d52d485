"""The answer to one message, piece by piece, while the guest works elsewhere."""

from __future__ import annotations

import queue
import weakref
from collections.abc import Callable, Iterator
from functools import partial

from isthmus.actor.message import AGAIN_S, STOP_GRACE_S, Message
from isthmus.actor.reply import Piece, Reply


class Stream(Iterator[str]):
    """The pieces of one answer, as text that never cuts a character; `reply` once it has ended.

    An iterator that is dropped before its end asks the guest to stop, as `close` does, and waits
    for nothing. One whose pieces go to a `deliver` callback may be dropped.
    """

    def __init__(
        self,
        message: Message,
        pieces: queue.SimpleQueue[Piece],
        look_at: Callable[[Message], None],
        require_elsewhere: Callable[[], None],
    ) -> None:
        """`look_at` has the loop see that a message has to end; `require_elsewhere` raises
        ActorBusy on the loop's thread."""
        self._message = message
        self._pieces = pieces
        self._look_at = look_at
        self._require_elsewhere = require_elsewhere
        self._reply: Reply | None = None
        self._told = False
        """Whether the outcome was given to whoever iterates."""

    def abandon_if_dropped(self) -> None:
        """Has the guest asked to stop when nobody holds the stream any more."""
        drop = partial(_abandon, self._message, self._look_at)
        weakref.finalize(self, drop).atexit = False

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
        self._require_elsewhere()
        try:
            piece = self._pieces.get()
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
        self._require_elsewhere()
        message.stopping = True
        self._look_at(message)
        if message.ended.wait(STOP_GRACE_S):
            return
        while not message.ended.wait(AGAIN_S):
            message.is_cut_off = True
            self._look_at(message)

    def take_back(self) -> None:
        """Has tools take back what they did for a message whose answer is thrown away: each run
        once, the last one first, but for those that were undone with the message. What the agent
        remembers stays. Stops the message if it has not ended, and waits for the tools."""
        self.close()
        self._message.take_back()

    def abandon(self) -> None:
        """Asks the guest to stop, as `close` does, and waits for nothing: a `deliver` callback, if
        there is one, is still told the outcome."""
        _abandon(self._message, self._look_at)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _abandon(message: Message, look_at: Callable[[Message], None]) -> None:
    if not message.ended.is_set():
        message.abandon()
        look_at(message)
