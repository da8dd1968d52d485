"""The answer to one message, piece by piece, for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TypeAlias

from isthmus.actor.reply import Deliver, Piece, Reply
from isthmus.actor.stream import Stream

_Begun: TypeAlias = "asyncio.Future[Stream | None]"


class AsyncStream(AsyncIterator[str]):
    """The pieces of one answer, as text that never cuts a character; `reply` once it has ended.

    Pieces come from the thread that drives all agents, by way of the event loop's own queue of
    calls. A stream that is dropped before its end asks the guest to stop, as `aclose` does, and
    waits for nothing. For one event loop, the one that runs when it is made.
    """

    def __init__(self, begin: Callable[[Deliver], Stream]) -> None:
        """`begin` sends the message, in a thread: an actor on its way to a file has to be waited
        for."""
        loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Piece] = asyncio.Queue()
        deliver = partial(_deliver, loop, self._pieces)
        self._begun: _Begun = loop.run_in_executor(None, partial(_begin, begin, deliver))
        self._reply: Reply | None = None
        self._told = False
        """Whether the outcome is known to whoever iterates."""
        weakref.finalize(self, partial(_drop, loop, self._begun)).atexit = False

    @property
    def reply(self) -> Reply:
        """The whole answer; RuntimeError before the stream has ended."""
        if self._reply is None:
            raise RuntimeError("the answer is not complete")
        return self._reply

    async def __anext__(self) -> str:
        if self._told:
            raise StopAsyncIteration
        try:
            piece = await self._pieces.get()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        if isinstance(piece, str):
            return piece
        self._told = True
        if isinstance(piece, Reply):
            self._reply = piece
            raise StopAsyncIteration
        raise piece

    async def aclose(self) -> None:
        """Asks the guest to stop and waits; it is cut off if it does not within two seconds."""
        if not self._told:
            self._begun.add_done_callback(_abandon)
            while isinstance(await self._pieces.get(), str):
                pass
            self._told = True

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


def _begin(begin: Callable[[Deliver], Stream], deliver: Deliver) -> Stream | None:
    """The stream, or None if its message was refused: `deliver` is told why then."""
    try:
        return begin(deliver)
    except BaseException as error:
        deliver(error)
        return None


def _deliver(loop: asyncio.AbstractEventLoop, pieces: asyncio.Queue[Piece], piece: Piece) -> None:
    """Puts a piece into the queue of an event loop, from another thread."""
    loop.call_soon_threadsafe(pieces.put_nowait, piece)


def _abandon(begun: _Begun) -> None:
    stream = None if begun.cancelled() else begun.result()
    if stream is not None:
        stream.abandon()


def _drop(loop: asyncio.AbstractEventLoop, begun: _Begun) -> None:
    with contextlib.suppress(RuntimeError):  # the event loop is closed, and all that it ran ended
        loop.call_soon_threadsafe(begun.add_done_callback, _abandon)
