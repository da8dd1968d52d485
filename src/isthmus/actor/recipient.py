"""How messages reach an actor: whole or in pieces, for a thread that waits or for asyncio."""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from functools import partial

from isthmus.actor.async_stream import AsyncStream
from isthmus.actor.content import Content
from isthmus.actor.reply import Deliver, Reply
from isthmus.actor.stream import Stream


class Recipient(ABC):
    """Takes messages, one at a time. Its methods may be called from any thread."""

    def send(self, message: Content, *, deadline_s: float | None = None) -> Reply:
        """Has the guest handle a message and waits for the answer.

        A command may have an open file of bytes as its message, which it reads as it comes.
        `deadline_s` is in seconds, by default `limits.deadline_s`, and includes the wait for a
        place. Raises GuestError and what it stands for where the guest fails, LimitExceeded,
        ContextFull, ActorBusy, ActorClosed, Overloaded, DeviceFailed. Ctrl-C ends the message and
        raises KeyboardInterrupt.
        """
        stream = self._submit(message, deadline_s, whole=True)
        for _ in stream:
            pass
        return stream.reply

    def stream(
        self,
        message: Content,
        *,
        deadline_s: float | None = None,
        deliver: Deliver | None = None,
        errors: str = "replace",
    ) -> Stream:
        """As `send`, giving the pieces of the answer as they come: iterate over the result.

        Or, with `deliver`, each piece is given to it, and at the end the Reply or the error, on the
        thread that drives all agents: it must not wait for anything, and has ActorBusy if it waits
        for an actor. There is nothing to iterate over then, and the result need not be kept.

        `errors` is what becomes of bytes that are no UTF-8, as in `bytes.decode`: with
        `surrogateescape` they can be had back by `str.encode`.

        The guest works elsewhere. Closing the iterator, or an exception such as Ctrl-C, stops it.
        """
        codecs.lookup_error(errors)
        return self._submit(message, deadline_s, deliver, errors=errors)

    async def asend(self, message: Content, *, deadline_s: float | None = None) -> Reply:
        """As `send`, for asyncio: nothing else on the event loop waits.

        A task that is cancelled meanwhile stops the message, and ends when the actor is free again:
        after two seconds at most.
        """
        stream = AsyncStream(partial(self._submit, message, deadline_s, whole=True))
        async for _ in stream:
            pass
        return stream.reply

    def astream(self, message: Content, *, deadline_s: float | None = None) -> AsyncStream:
        """As `stream`, for asyncio: `async for piece in actor.astream(…)`.

        The message is sent at once. Errors, of its sending too, come with the next piece. A task
        that is cancelled at a piece stops the message, as in `asend`.
        """
        return AsyncStream(partial(self._submit, message, deadline_s))

    @abstractmethod
    def _submit(
        self,
        message: Content,
        deadline_s: float | None,
        deliver: Deliver | None = None,
        *,
        whole: bool = False,
        errors: str = "replace",
    ) -> Stream:
        """Sends a message. Of a `whole` answer no pieces are told, for a caller who waits."""
