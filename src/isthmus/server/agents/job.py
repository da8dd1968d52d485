"""An answer that is made beside all requests, for whoever follows it."""

from __future__ import annotations

import asyncio
import sys
from bisect import bisect_right
from collections.abc import AsyncIterator

from isthmus.server.agents import telling
from isthmus.server.agents.replies import Begun, Told
from isthmus.server.agents.telling import Place


class Job:
    """See the module. Used by one event loop."""

    def __init__(self, message: str) -> None:
        self.message = message
        self.task: asyncio.Task[None] | None = None
        self.card: Begun | None = None
        """What is known of it once it is kept that it has begun."""
        self._pieces: list[str] = []
        self._ends: list[int] = []
        """Characters until the end of each piece."""
        self._told: Told | None = None
        self._failure: BaseException | None = None
        self._changed = asyncio.Event()

    @property
    def has_ended(self) -> bool:
        """Whether nothing more is told of it."""
        return self._told is not None or self._failure is not None

    def begin(self, card: Begun) -> None:
        """It is kept that it has begun."""
        self.card = card
        self._wake()

    def tell(self, piece: str | Told) -> None:
        """One more piece has come, or the end."""
        if isinstance(piece, str):
            if piece:
                self._pieces.append(piece)
                self._ends.append(self._length + len(piece))
        else:
            self._told = piece
        self._wake()

    def fail(self, error: BaseException) -> None:
        """Nothing more is told, since something went wrong."""
        self._failure = error
        self._wake()

    async def leave(self) -> None:
        """Nobody wants it, as its caller left before it had begun; nothing if it has."""
        if self.card is None and self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])

    async def begun(self) -> Begun:
        """Returns once it is kept that it has begun; raises why that cannot be."""
        while self.card is None:
            if self._failure is not None:
                raise self._failure
            await self._changed.wait()
        return self.card

    async def ended(self) -> None:
        """Returns once nothing more is told of it, and its agent is free; raises why it failed."""
        if self.task is not None:
            await asyncio.wait([self.task])
        if self._failure is not None:
            raise self._failure

    async def follow(self, place: Place) -> AsyncIterator[bytes]:
        """Its events after a place, those that were and those to come. Raises why it failed, and
        HttpError 400 if the place is beyond its end."""
        at = sys.maxsize if place.at is None else place.at
        while True:
            changed, length = self._changed, self._length
            if at < length:
                number = bisect_right(self._ends, at)
                begins = self._ends[number] - len(self._pieces[number])
                text = self._pieces[number][at - begins :]
                at = self._ends[number]
                yield telling.delta(self.message, at, text)
            elif self._told is not None:
                place.rest_of(length)
                yield telling.done(self._told)
                return
            elif self._failure is not None:
                raise self._failure
            else:
                await changed.wait()

    @property
    def _length(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
