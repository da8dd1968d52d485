"""One message to an actor, awaited: its pieces arrive in the event loop without a thread each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeAlias

from isthmus.actor import Actor, Reply

Outcome: TypeAlias = "str | Reply | BaseException"


class Answer:
    """The pieces of an answer, for `async for`; `reply` once it has ended.

    `close` must be awaited, also after an error: the actor is free only then.
    """

    def __init__(self, actor: Actor, message: str | bytes, deadline_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._outcomes: asyncio.Queue[Outcome] = asyncio.Queue()
        self._reply: Reply | None = None
        self._stream = actor.stream(message, deadline_s=deadline_s, deliver=self._deliver)

    @property
    def reply(self) -> Reply:
        """The whole answer; RuntimeError before it has ended."""
        if self._reply is None:
            raise RuntimeError("the answer is not complete")
        return self._reply

    async def __aiter__(self) -> AsyncIterator[str]:
        while True:
            outcome = await self._outcomes.get()
            if isinstance(outcome, str):
                yield outcome
            elif isinstance(outcome, Reply):
                self._reply = outcome
                return
            else:
                raise outcome

    async def close(self) -> None:
        """Has the guest stop if it has not ended, and waits for it."""
        if not self._stream.ended:
            await asyncio.shield(asyncio.to_thread(self._stream.close))

    def _deliver(self, outcome: Outcome) -> None:
        """Called by the thread that handles the message."""
        self._loop.call_soon_threadsafe(self._outcomes.put_nowait, outcome)
