"""One message to an agent that is held: from its beginning, or its middle, to its turn.

What fails, or is left, leaves no trace in the agent.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from isthmus.actor import Actor, Restoration
from isthmus.actor.usage import Usage
from isthmus.errors import (
    AnswerPaused,
    DeadlineExceeded,
    DeviceFailed,
    IsthmusError,
    Overloaded,
    RegionError,
)
from isthmus.model.checks import nothing
from isthmus.server.agents.held import Held
from isthmus.server.agents.requests import NewMessage
from isthmus.server.agents.saver import Saver
from isthmus.server.agents.shelf import Shelf
from isthmus.server.agents.turn import turn_of, with_level
from isthmus.server.generation.answering import Answer
from isthmus.server.http.entry import current
from isthmus.server.http.errors import HttpError
from isthmus.server.settings import ServerSettings
from isthmus.server.storage.record import Midway, Turn


class Stopping(HttpError):
    """What is told of an answer that goes on after the next start of the server."""

    def __init__(self) -> None:
        said = (
            "the server stops, and goes on with the answer when it has started again, or another "
            "server does: come back with Last-Event-ID"
        )
        super().__init__(503, said, code="stopping", retry_s=1)


class Postponed(HttpError):
    """What is told of an answer that is kept, and for which the server is too busy now."""

    def __init__(self, why: IsthmusError) -> None:
        said = f"the answer is kept, and goes on when the server is less busy: {why}"
        super().__init__(503, said, code="postponed", retry_s=1)


_BUSY = (DeadlineExceeded, DeviceFailed, Overloaded, RegionError)
"""Why an agent may not come back now, and may a moment later."""


class Course:
    """See the module. Used once."""

    def __init__(
        self,
        shelf: Shelf,
        held: Held,
        sent: Midway,
        settings: ServerSettings,
        answers: dict[str, Answer],
    ) -> None:
        """`answers` are those that are under way, by agent."""
        self._shelf, self._held, self._sent = shelf, held, sent
        self._settings = settings
        self._answers = answers
        self._answer: Answer | None = None
        self._restored: Restoration | None = None
        self._told: list[str] = []

    async def items(self) -> AsyncGenerator[str | Turn]:
        """The pieces of the answer, and the turn once it is done. Raises Stopping if it was saved
        in its middle as the server stops, Postponed, and what actors raise."""
        done, held = False, self._held
        try:
            actor = await self._present()
            before = actor.usage
            answer = self._answer = await self._begun(actor)
            saver = Saver(held, actor, answer, self._sent, self._settings)
            self._answers[held.record.id] = answer
            try:
                for piece in self._told:
                    yield piece
                async for piece in answer:
                    self._told.append(piece)
                    yield piece
                    saver.look()
            finally:
                del self._answers[held.record.id]
                await answer.close()
                await saver.settle()
                _count(before, actor.usage)
            turn = await self._commit(actor, answer)
            done = True
            yield turn
        except AnswerPaused:
            await held.save_midway(actor, self._sent)
            raise Stopping from None
        finally:
            if not done:
                taking_back = nothing if self._answer is None else self._answer.take_back
                await held.discard(taking_back)

    async def _present(self) -> Actor:
        """The agent in memory. Postponed, if its message is kept and it cannot be now."""
        try:
            return await self._actor()
        except _BUSY as error:
            if self._held.record.midway is None:
                raise
            raise Postponed(error) from error

    async def _actor(self) -> Actor:
        held = self._held
        if self._sent.saved:
            actor = await held.midway_actor()
            self._told = [actor.answer_so_far or ""]
            return actor
        was_live = self._shelf.is_live(held.record.id)
        actor = await held.actor()
        self._restored = None if was_live else actor.restored
        return actor

    async def _begun(self, actor: Actor) -> Answer:
        """The answer, from where the actor is."""
        sent = self._sent
        if sent.saved:
            return Answer(actor, None, None)
        said = NewMessage(input=sent.input, files=list(sent.files))
        message = await self._shelf.in_thread(said.message)
        allowed_s = (actor.limits.deadline_s, self._settings.deadline_s)
        return Answer(actor, message, min(it for it in allowed_s if it is not None))

    async def _commit(self, actor: Actor, answer: Answer) -> Turn:
        full = actor.context_is_full
        turn = turn_of(self._held.record, self._sent, answer, "".join(self._told), full=full)
        turn = with_level(turn, self._restored)
        return await self._held.commit(actor, turn, answer.take_back)


def _count(before: Usage, after: Usage) -> None:
    """Notes the tokens that a message has cost, whatever became of it."""
    entry = current()
    entry.tokens_in += after.tokens_in - before.tokens_in
    entry.tokens_out += after.tokens_out - before.tokens_out
