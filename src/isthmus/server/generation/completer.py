"""From a list of token ids to text, by sandboxed agents that are kept for the next request.

`slots.py` chooses the agent. The guest `complete` keeps only what leaves every bit of an answer the
same, whichever agent gives it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from isthmus.actor import Actor
from isthmus.config import Limits
from isthmus.errors import ContextFull
from isthmus.runtime import Runtime
from isthmus.runtime.memory64 import fitting_guest
from isthmus.server.generation.answering import Answer
from isthmus.server.generation.request import Began, End, Request, read_tokens
from isthmus.server.generation.slots import Slot, Slots
from isthmus.server.generation.tokens import Token
from isthmus.server.http.entry import current
from isthmus.server.http.fair import Room
from isthmus.server.models.resident import Served
from isthmus.server.settings import ServerSettings

_GUEST = "complete"
_FINE = 512
"""Tokens at the beginning of a prompt that are prefilled in small chunks, where any cut has the
same bits. After more context the kernels for large ones are faster: twice at 3,000 tokens."""


@dataclass(frozen=True)
class Recipe:
    """What an agent that completes requests is made of, beside its model."""

    guest: str
    """A bundled guest."""
    sha256: str
    """The hash of that."""
    args: Mapping[str, str]
    limits: Limits


class Completer:
    """The agents that complete requests for one model, as long as that is in memory."""

    def __init__(self, runtime: Runtime, served: Served, settings: ServerSettings) -> None:
        self.name = served.name
        """The server's name of the model."""
        self.model = model = served.model
        self.n_ctx = served.n_ctx
        self._runtime = runtime
        self._settings = settings
        fitting = fitting_guest(_GUEST, model, self.n_ctx, Limits(), settings.memory64)
        self._guest_name, self._limits = fitting
        self._guest = runtime.load_guest(self._guest_name)
        self._slots = Slots(self._spawn, settings.slots)
        self._room = Room(settings.slots, settings.waiting)

    @property
    def most_answers(self) -> int:
        """Answers that one request can have: more could not even wait, whoever else asks."""
        return self._settings.slots + self._settings.waiting

    def require_room(self) -> None:
        """Overloaded if a request could not even wait."""
        self._room.require(current().owner)

    def require_fitting(self, prompt: Sequence[int], room: int = 1) -> None:
        """ContextFull for a prompt after which there is no room for an answer of `room` tokens."""
        self._require_room_for(len(prompt), room)

    def _require_room_for(self, n_tokens: int, room: int = 1) -> None:
        if n_tokens + room > self.n_ctx:
            raise ContextFull(f"the prompt has {n_tokens} tokens; the context has {self.n_ctx}")

    async def complete(self, request: Request) -> AsyncGenerator[Began | Token | End, None]:
        """The answer, token by token, and how it ended. Raises IsthmusError."""
        self.require_fitting(request.prompt, min(1, request.max_tokens))
        async with self._slot(request) as slot:
            answer = Answer(slot.actor, request.message(), self._settings.deadline_s)
            entry = current()
            entry.count_prompt(request.prompt)
            n_told = 0
            try:
                async for item in read_tokens(self.model, answer, request):
                    if isinstance(item, Began):
                        entry.count_prompt(request.prompt, item.n_media)
                        entry.tokens_cached += item.n_cached
                    else:
                        n_new = item.n_tokens - n_told if isinstance(item, End) else item.is_new
                        entry.count_tokens(n_new)
                        n_told += n_new
                    yield item
            finally:
                await answer.close()

    async def count(self, prompt: Sequence[int], media: tuple[bytes, ...]) -> int:
        """Tokens of a prompt with pictures and sounds: an agent decodes them, no model computes.
        Raises as `complete`."""
        request = Request(prompt=prompt, max_tokens=0, media=media, only_counts=True)
        self.require_fitting(prompt)
        n_tokens = len(prompt)
        async with self._slot(request) as slot:
            answer = Answer(slot.actor, request.message(), self._settings.deadline_s)
            try:
                async for item in read_tokens(self.model, answer, request):
                    n_tokens += item.n_media if isinstance(item, Began) else 0
            finally:
                await answer.close()
        self._require_room_for(n_tokens)
        return n_tokens

    @asynccontextmanager
    async def _slot(self, request: Request) -> AsyncIterator[Slot]:
        owner = current().owner
        async with self._room.place(owner):
            whose = None if self._settings.share_beginnings else owner
            slot = await self._slots.take(whose, request.known_by(), keeps=request.only_counts)
            try:
                yield slot
            finally:
                await asyncio.shield(self._slots.put_back(slot))

    def recipe(self) -> Recipe:
        """What its agents are made of. The first time it tries the model's kernels: call it in a
        thread."""
        fine = _FINE if self.model.exact_cuts else 0
        args = {"n_ctx": str(self.n_ctx), "fine": str(fine)}
        return Recipe(self._guest_name, self._guest.sha256, args, self._limits)

    def _spawn(self) -> Actor:
        """A fresh agent."""
        _ = self.model.packs  # tried out now, and not when many ask for the first time
        return self._runtime.spawn(
            self._guest,
            models={"default": self.model},
            args=self.recipe().args,
            limits=self._limits,
        )
