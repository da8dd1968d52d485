"""Saves a long answer in its middle, every so many tokens or seconds, while it is told."""

from __future__ import annotations

import asyncio
import logging
import time

from isthmus.actor import Actor
from isthmus.errors import ActorBusy, IsthmusError
from isthmus.server.agents.held import Held
from isthmus.server.generation.answering import Answer
from isthmus.server.http.entry import current
from isthmus.server.settings import ServerSettings
from isthmus.server.storage.record import Midway

_log = logging.getLogger("isthmus.server")


class Saver:
    """See the module. One for each answer; an answer that is short costs nothing."""

    def __init__(
        self, held: Held, actor: Actor, answer: Answer, sent: Midway, settings: ServerSettings
    ) -> None:
        self._held, self._actor, self._answer, self._sent = held, actor, answer, sent
        self._tokens = settings.save_tokens if actor.guest.is_resumable else 0
        self._seconds = settings.save_s if actor.guest.is_resumable else 0.0
        self._n = answer.n_pieces
        """Pieces of the answer when it was saved last: one for each token, of most guests."""
        self._at = time.monotonic()
        self._task: asyncio.Task[None] | None = None

    def look(self) -> None:
        """Begins to save, if it is time to."""
        if self._is_due() and (self._task is None or self._task.done()):
            self._task = asyncio.ensure_future(self._save())
            current().work_until(self._task)

    async def settle(self) -> None:
        """Returns once nothing is being saved."""
        if self._task is not None:
            await asyncio.wait([self._task])

    def _is_due(self) -> bool:
        n, seconds = self._answer.n_pieces - self._n, time.monotonic() - self._at
        return bool(n) and (0 < self._tokens <= n or 0 < self._seconds <= seconds)

    async def _save(self) -> None:
        n, at = self._answer.n_pieces, time.monotonic()
        try:
            await self._held.save_midway(self._actor, self._sent)
        except ActorBusy:  # a tool works: again at the next piece
            return
        except IsthmusError as error:  # the answer goes on; if the server ends it begins earlier
            _log.warning("agent %s is not saved in its answer: %s", self._held.record.id, error)
        self._n, self._at = n, at
