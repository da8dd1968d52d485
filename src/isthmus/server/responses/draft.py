"""A response that is being made: an agent, and the position that it is to have.

===================================  ===========================================================
what the response goes on from       its agent
===================================  ===========================================================
the last one of an agent, unused     that agent, held meanwhile
a conversation                       that agent; HttpError 409 if it is used
any other                            a fork
nothing                              a fork of the owner's agent whose prompt begins alike, or a
                                     fresh one
===================================  ===========================================================

A new agent is kept by its first commit: until then nobody knows of it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
import numpy as np

from isthmus.actor import Actor
from isthmus.server.agents.held import Held
from isthmus.server.agents.shelf import Shelf
from isthmus.server.generation.completer import Recipe
from isthmus.server.generation.slots import WORTH_A_FORK, n_common
from isthmus.server.http.entry import current
from isthmus.server.http.fair import Owner
from isthmus.server.responses.archive import Basis, brought_back, locked
from isthmus.server.responses.chain import Kept, as_turn
from isthmus.server.responses.ids import Place
from isthmus.server.storage.record import Origin, Record, new_id


class Drafts:
    """All drafts of a server. `most` prompts are remembered, those of the agents in memory;
    `shared` are those of all owners."""

    def __init__(self, shelf: Shelf, most: int, shared: bool) -> None:
        self._shelf = shelf
        self._most = most
        self._shared = shared
        self._prompts: OrderedDict[str, _Prompt] = OrderedDict()
        """The last prompt of each agent, the one used last at the end."""

    @asynccontextmanager
    async def begun(self, basis: Basis, model: str, recipe: Recipe) -> AsyncIterator[Draft]:
        """A draft, which is given up unless it is committed. HttpError 409."""
        async with AsyncExitStack() as stack:
            held = await self._held(stack, basis)
            record = self._record(basis, held, model, recipe)
            draft = Draft(self._shelf, stack, basis, record, recipe, held)
            try:
                yield draft
            finally:
                await draft.give_up()

    async def _held(self, stack: AsyncExitStack, basis: Basis) -> Held | None:
        """The agent that the response goes on in; None if that is a new one."""
        record = basis.record
        if record is None or not basis.is_last:
            return None
        if not self._shelf.is_held(record.id):
            held = await stack.enter_async_context(self._shelf.holding(record.id))
            if held.record.position == record.position:
                return held
            await stack.aclose()
        if record.kind == "conversation":
            raise locked(record)
        return None

    def _record(self, basis: Basis, held: Held | None, model: str, recipe: Recipe) -> Record:
        given: dict[str, Any] = {
            "guest": recipe.guest,
            "models": {"default": model},
            "args": dict(recipe.args),
            "limits": asdict(recipe.limits),
        }
        if held is not None:
            return msgspec.structs.replace(held.record, **given)
        source = basis.record
        return Record(
            id=new_id(),
            name="",
            seed=secrets.randbits(63),
            created=time.time(),
            owner=current().owner,
            origin=None if source is None else Origin(id=source.id, position=basis.position),
            position=basis.position,
            kind="response",
            **given,
        )

    def like(self, record: Record, prompt: np.ndarray) -> Record | None:
        """The agent of the same owner and kind whose last prompt has most of this one."""
        best, most = None, WORTH_A_FORK - 1
        for id_, it in self._prompts.items():
            known = self._shelf.records.get(id_)
            if known is None or not (self._shared or it.owner == record.owner):
                continue
            n = n_common(it.ids, prompt)
            if n > most and _is_alike(known, record):
                best, most = known, n
        return best

    def note(self, record: Record, prompt: np.ndarray) -> None:
        """Remembers the prompt that an agent was saved with."""
        self._prompts[record.id] = _Prompt(record.owner, prompt)
        self._prompts.move_to_end(record.id)
        if len(self._prompts) > self._most:
            self._prompts.popitem(last=False)


@dataclass(frozen=True)
class _Prompt:
    owner: Owner
    ids: np.ndarray


def _is_alike(known: Record, record: Record) -> bool:
    """Whether an agent can be what another one is to be."""
    return (known.guest, known.models, known.args) == (record.guest, record.models, record.args)


class Draft:
    """See the module. `place` is where the next commit will be kept."""

    def __init__(
        self,
        shelf: Shelf,
        stack: AsyncExitStack,
        basis: Basis,
        record: Record,
        recipe: Recipe,
        held: Held | None,
    ) -> None:
        self._shelf = shelf
        self._stack = stack
        self._basis = basis
        self._recipe = recipe
        self._held = held
        self._actor: Actor | None = None
        self._dirty = False
        """Whether the actor may be another one than what was saved last."""
        self.record = record
        self.place = Place.at(record.id, record.position + 1)

    async def actor(self, like: Record | None = None) -> Actor:
        """The agent in memory. A new one is a fork of `like`, if it goes on from nothing."""
        self._dirty = True
        if self._held is not None:
            self._held.record = self.record
            self._actor = await self._held_actor(self._held)
        elif self._actor is None:
            source, position = self._basis.record, self._basis.position
            if source is None and like is not None:
                source, position = like, like.position
            if source is not None and not _is_alike(source, self.record):
                source = None
            self._actor = await self._shelf.start(self.record, source, position)
            if self._actor.guest.sha256 != self._recipe.sha256:
                await self._shelf.in_thread(self._actor.close)
                self._actor = await self._shelf.start(self.record)
        return self._actor

    async def _held_actor(self, held: Held) -> Actor:
        known = self._shelf.records[self.record.id]
        if _is_alike(known, self.record):
            actor = await brought_back(self._shelf, held)
            if actor.guest.sha256 == self._recipe.sha256:
                return actor
        return await self._shelf.renew(self.record)

    async def commit(self, kept: Kept, n_tokens: int = 0, seconds: float = 0) -> None:
        """Keeps the agent, with one more turn. Once begun it goes on, whoever leaves."""
        actor = await self.actor() if self._actor is None else self._actor
        turn = as_turn(kept, self.record.position + 1, time.time(), n_tokens, seconds)
        if self._held is not None:
            await self._held.commit(actor, turn)
            self.record = self._held.record
        else:
            record = msgspec.structs.replace(self.record, position=turn.position, used=turn.at)
            turns = [*self._basis.turns, turn]
            self._actor = None  # it is the shelf's
            keeping = asyncio.ensure_future(self._shelf.keep(record, actor, turns))
            current().work_until(keeping)
            self.record = await asyncio.shield(keeping)
            holding = self._shelf.holding(self.record.id)
            self._held = await self._stack.enter_async_context(holding)
        self._dirty = False

    async def give_up(self) -> None:
        """Forgets what the agent has done since it was committed."""
        actor, self._actor = self._actor, None
        if self._held is None:
            if actor is not None:
                await self._shelf.in_thread(actor.close)
        elif self._dirty:
            await self._held.discard()
        self._dirty = False
