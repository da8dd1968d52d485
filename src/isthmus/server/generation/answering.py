"""One message to an actor, awaited: its pieces arrive in the event loop without a thread each."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from weakref import WeakKeyDictionary

from isthmus.actor import Actor, Reply
from isthmus.errors import GuestExited

_MAX_CHARACTERS = 4096
"""Characters of one piece: those that read it take milliseconds, and others have the event loop
between two pieces."""


class Courier:
    """Wakes an event loop for all answers that have got something, once and not for each of them.

    A wake-up takes some ten microseconds of the thread that drives all agents, which delivers the
    pieces of all of them one behind the other.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[asyncio.Event] = deque()
        self._lock = threading.Lock()
        self._is_called = False

    @classmethod
    def here(cls) -> Courier:
        """The one of the running event loop."""
        loop = asyncio.get_running_loop()
        found = _COURIERS.get(loop)
        if found is None:
            found = _COURIERS[loop] = cls(loop)
        return found

    def set(self, event: asyncio.Event) -> None:
        """Has an event of the loop set soon; from any thread."""
        with self._lock:
            self._waiting.append(event)
            calls, self._is_called = not self._is_called, True
        if calls:
            self._loop.call_soon_threadsafe(self._set_all)

    def _set_all(self) -> None:
        with self._lock:
            self._is_called = False
            events, self._waiting = self._waiting, deque()
        for event in events:
            event.set()


_COURIERS: WeakKeyDictionary[asyncio.AbstractEventLoop, Courier] = WeakKeyDictionary()


class Answer:
    """The pieces of an answer, for `async for`; `reply` once it has ended.

    Pieces that nobody has taken yet are joined, so that a slow reader of what a guest emits letter
    by letter costs no more than the text itself: at most `Limits.output_nbytes`.
    `close` must be awaited, also after an error: the actor is free only then.
    """

    def __init__(self, actor: Actor, message: str | bytes | None, deadline_s: float | None) -> None:
        """`message` is None for the rest of the answer in whose middle the actor is, which has the
        time that was left if `deadline_s` is None."""
        self.actor = actor
        self._courier = Courier.here()
        self._lock = threading.Lock()
        """Held while text is added, by the thread that drives all agents, or taken."""
        self._text = bytearray()
        self._outcome: Reply | BaseException | None = None
        self._came = asyncio.Event()
        self._woken = False
        self._reply: Reply | None = None
        self.began = time.monotonic()
        self.n_pieces = 0
        """Pieces that the guest has emitted; most guests emit one for each token."""
        self.stopped = False
        """Whether it was ended by `stop`, so that `reply` is what was said until then."""
        self.exit_status = 0
        """What a command exited with, which has answered then."""
        self._stream = (
            actor.resume(deadline_s=deadline_s, deliver=self._deliver)
            if message is None
            else actor.stream(message, deadline_s=deadline_s, deliver=self._deliver)
        )

    @property
    def reply(self) -> Reply:
        """The whole answer; RuntimeError before it has ended."""
        if self._reply is None:
            raise RuntimeError("the answer is not complete")
        return self._reply

    async def __aiter__(self) -> AsyncIterator[str]:
        while True:
            await self._came.wait()
            text, outcome = self._take()
            for at in range(0, len(text), _MAX_CHARACTERS):
                if at:
                    await asyncio.sleep(0)
                yield text[at : at + _MAX_CHARACTERS]
            if isinstance(outcome, Reply):
                self._reply = outcome
                return
            if outcome is not None:
                raise outcome

    def stop(self) -> None:
        """Asks the guest to end the answer here; what it has said is the reply, if it listens."""
        self.stopped = True
        self._stream.abandon()

    async def finish(self) -> Reply:
        """The whole answer once it has ended. Pieces that nobody has taken are dropped."""
        while True:
            _, outcome = self._take()
            if isinstance(outcome, Reply):
                self._reply = outcome
                return outcome
            if outcome is not None:
                raise outcome
            await self._came.wait()

    def take_back(self) -> None:
        """Has tools take back what they did for an answer that has ended, each run once. Waits."""
        self._stream.take_back()

    async def close(self) -> None:
        """Has the guest stop if it has not ended, and waits for it.

        Nearly every answer of a completion is closed a moment before its guest returns, and a guest
        that does not listen is waited for for seconds. So no thread waits.
        """
        if not self._stream.ended:
            self._stream.abandon()
            await asyncio.shield(self._end())

    async def _end(self) -> None:
        while self._outcome is None:
            await self._came.wait()
            self._take()

    def _take(self) -> tuple[str, Reply | BaseException | None]:
        with self._lock:
            text, self._text = self._text, bytearray()
            self._woken = False
            self._came.clear()
            return text.decode(), self._outcome

    def _deliver(self, piece: str | Reply | BaseException) -> None:
        """Called by the thread that drives all agents."""
        with self._lock:
            if isinstance(piece, str):
                self._text += piece.encode()
                self.n_pieces += 1
            elif isinstance(piece, GuestExited) and piece.reply is not None:
                self._outcome, self.exit_status = piece.reply, piece.status
            else:
                self._outcome = piece
            wakes, self._woken = not self._woken, True
        if wakes:
            self._courier.set(self._came)
