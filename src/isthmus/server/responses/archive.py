"""Stored responses and conversations, over the shelf of agents.

::

    resp_ABC…2 ──► agent ABC ─┬─ position 1   response    the beginning of a chain
                              ├─ position 2   response    goes on in the same agent
                              └─ position 3   response
                   agent DEF ── position 3    response    goes on from ABC…2 too: a fork of ABC

An agent's turns are the truth. Its memory, the KV cache of the prompt that it had last, only saves
time: where that is gone, or the model or the server's settings are others now, a fresh agent
computes the same bits.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from isthmus.actor import Actor
from isthmus.errors import SnapshotError, SnapshotNotFound
from isthmus.server.agents.held import Held
from isthmus.server.agents.shelf import Shelf
from isthmus.server.http.errors import HttpError
from isthmus.server.responses.chain import Chain, Deleted, Kept, Stored, as_turn
from isthmus.server.responses.ids import (
    agent_of_conversation,
    place_of_item,
    place_of_response,
)
from isthmus.server.responses.items import Item
from isthmus.server.storage.history import KEPT_NBYTES
from isthmus.server.storage.record import Record, Turn

_log = logging.getLogger("isthmus.server")
_MAX_REFERRED_TO = 64
"""Chains and conversations whose items one request refers to: each is read as a whole."""
_REFERRED_NBYTES = 2 * KEPT_NBYTES
"""Bytes of those, about: a response keeps a copy of what it refers to."""


@dataclass(frozen=True)
class Basis:
    """What a new response goes on from; nothing, if there is no record."""

    items: Sequence[Item] = ()
    """The conversation until there."""
    record: Record | None = None
    """The agent that it is, or is forked from."""
    position: int = 0
    """Where that agent was."""
    turns: Sequence[Turn] = ()
    """That agent's turns until there, for a fork."""
    is_last: bool = False
    """Whether nothing was said in that agent since."""


class Archive:
    """See the module. Used by one event loop."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf

    # ------------------------------------------------------------------ looking

    async def find(self, id_: str) -> tuple[Record, Stored]:
        """A response, and the agent whose position it is. HttpError 404."""
        place = place_of_response(id_)
        found = None if place is None else await self._chain(place.agent)
        stored = None if found is None else found[1].find(id_)
        if found is None or stored is None:
            raise HttpError(404, f"Response with id '{id_[:120]}' not found.", param="id")
        return found[0], stored

    async def before(self, id_: str) -> Basis:
        """What a response with that `previous_response_id` goes on from. HttpError 400."""
        place = place_of_response(id_)
        found = None if place is None else await self._chain(place.agent)
        stored = None if found is None else found[1].find(id_)
        if found is None or stored is None:
            said = f"Previous response with id '{id_[:120]}' not found."
            code = "previous_response_not_found"
            raise HttpError(400, said, code=code, param="previous_response_id")
        if not stored.is_said:
            said = f"response {id_} is {stored.response['status']}: nothing can go on from it"
            raise HttpError(400, said, param="previous_response_id")
        record, chain, turns = found
        items = [*stored.before, *stored.input, *stored.response["output"]]
        until = [turn for turn in turns if turn.position <= stored.position]
        _require_kept(sum(len(turn.kept or "") for turn in until))
        is_last = record.kind == "response" and chain.position == stored.position
        return Basis(items, record, stored.position, until, is_last)

    async def conversation(self, id_: str) -> tuple[Record, Chain, list[Turn]]:
        """A conversation. HttpError 404."""
        agent = agent_of_conversation(id_)
        found = None if agent is None else await self._chain(agent)
        if found is None or found[0].kind != "conversation":
            said = f"Conversation with id '{id_[:120]}' not found."
            raise HttpError(404, said, code="conversation_not_found", param="conversation")
        return found

    async def within(self, id_: str) -> Basis:
        """What a response of a conversation goes on from. HttpError 404."""
        record, chain, turns = await self.conversation(id_)
        _require_kept(chain.nbytes, "conversation")
        return Basis(chain.items, record, record.position, turns, True)

    async def resolved(self, items: Sequence[Item], before: Sequence[Item]) -> list[Item]:
        """The items with what references name in their places: items `before` them, or of any
        response. HttpError 404."""
        if not any(it["type"] == "item_reference" for it in items):
            return list(items)
        ids, known, agents = await asyncio.to_thread(_references, items, before)
        known |= await self._referred(agents, ids)
        return await asyncio.to_thread(_with_referred, items, known)

    async def _referred(self, agents: Iterable[str], ids: Container[str]) -> dict[str, Item]:
        """The items with these ids in chains and conversations, by their ids. HttpError 400."""
        items: dict[str, Item] = {}
        nbytes = 0
        for agent in agents:
            await self.shelf.owning.look(agent)
            found = await self._chain(agent)
            if found is None:
                continue
            record, chain, _ = found
            nbytes += chain.nbytes
            if nbytes > _REFERRED_NBYTES:
                said = f"chains with more than {_REFERRED_NBYTES} bytes of items are referred to"
                raise HttpError(400, said, param="input")
            items |= {it["id"]: it for it in _items(record, chain) if it["id"] in ids}
        return items

    async def _chain(self, agent: str) -> tuple[Record, Chain, list[Turn]] | None:
        """An agent that responses are, if it is there for whoever asks."""
        try:
            record = self.shelf.record(agent)
            if record.kind == "agent":
                return None
            turns = await self.shelf.turns(record)
        except SnapshotNotFound:
            return None
        return record, await self.shelf.in_thread(lambda: Chain.of(turns, agent)), turns

    # ------------------------------------------------------------------ changing

    async def change(self, record: Record, chain: Chain, kept: Kept) -> None:
        """A change of a conversation that was `chain`. HttpError 409 if it is another one now, 400
        if it is as long as one may be."""
        _require_kept(chain.nbytes, "conversation")
        await self.add(record, kept)

    async def add(self, record: Record, kept: Kept) -> None:
        """One more turn, in which nothing is computed. HttpError 409 if the agent is used, or was
        since the record was read."""
        if self.shelf.is_held(record.id):
            raise locked(record)
        async with self.shelf.holding(record.id) as held:
            if held.record.position != record.position:
                raise locked(record)
            turn = as_turn(kept, held.record.position + 1, time.time())
            await held.commit(await brought_back(self.shelf, held), turn)

    async def delete(self, id_: str) -> None:
        """Has a response be told to nobody any more; what goes on from it stays. HttpError 404."""
        record, _ = await self.find(id_)
        found = await self._chain(record.id)
        if found is None:
            return
        ours = [
            place_of_response(it)
            for it, stored in found[1].responses.items()
            if not stored.is_deleted
        ]
        n_left = sum(it is not None and it.agent == record.id for it in ours)
        if n_left > 1 or record.kind == "conversation":
            await self.add(record, Deleted(id_))
        elif self.shelf.is_held(record.id) or not await self.shelf.delete(record.id, found[0]):
            raise locked(record)


async def brought_back(shelf: Shelf, held: Held) -> Actor:
    """The agent in memory; a fresh one if its snapshot cannot be used, since that only saves
    time."""
    try:
        return await held.actor()
    except SnapshotError as error:
        _log.info("agent %s begins afresh: %s", held.record.id, error)
        return await shelf.renew(held.record)


def _items(record: Record, chain: Chain) -> list[Item]:
    """All items of a chain or conversation that can be referred to."""
    items = chain.items if record.kind == "conversation" else []
    for id_, stored in chain.responses.items():
        place = place_of_response(id_)
        if not stored.is_deleted and place is not None and place.agent == record.id:
            items += [*stored.input, *stored.response["output"]]
    return items


def locked(record: Record) -> HttpError:
    """What is told of an agent that somebody else uses: 409."""
    said = f"this {record.kind} is used by another request: try again when that is done"
    return HttpError(409, said, code=f"{record.kind}_locked", retry_s=1)


def _require_kept(nbytes: int, param: str = "previous_response_id") -> None:
    """HttpError 400 for a chain that is as long as one may be."""
    if nbytes > KEPT_NBYTES:
        said = (
            f"the conversation has {nbytes} bytes of items, and {KEPT_NBYTES} are kept at most: "
            "begin another one with those of its items that matter"
        )
        raise HttpError(400, said, code="conversation_too_long", param=param)


def _references(
    items: Sequence[Item], before: Sequence[Item]
) -> tuple[set[str], dict[str, Item], set[str]]:
    """The ids that references name, the items `before` them by their ids, and the agents that have
    others. In a thread: there may be 100,000. HttpError 400."""
    ids = {it["id"] for it in items if it["type"] == "item_reference"}
    known = {it["id"]: it for it in before}
    places = [place_of_item(id_) for id_ in ids - known.keys()]
    agents = {place.agent for place in places if place is not None}
    if len(agents) > _MAX_REFERRED_TO:
        said = f"items of {len(agents)} chains are referred to: {_MAX_REFERRED_TO} may be"
        raise HttpError(400, said, param="input")
    return ids, known, agents


def _with_referred(items: Sequence[Item], known: Mapping[str, Item]) -> list[Item]:
    """The items with those that references name in their places. HttpError 404."""
    found: list[Item] = []
    for it in items:
        if it["type"] != "item_reference":
            found.append(it)
        elif it["id"] in known:
            found.append(known[it["id"]])
        else:
            said = f"Item with id '{it['id'][:120]}' not found; `store: false` keeps none."
            raise HttpError(404, said, code="item_not_found", param="input")
    return found
