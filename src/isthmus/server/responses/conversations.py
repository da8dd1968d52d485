"""`/v1/conversations`: items that are kept, to which responses add theirs."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import asdict
from typing import Any

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from isthmus.server.agents.shelf import Shelf
from isthmus.server.generation.writer import Writer
from isthmus.server.http.endpoint import Endpoint, as_json, read_query
from isthmus.server.http.entry import current
from isthmus.server.http.errors import HttpError
from isthmus.server.responses.archive import Archive, locked
from isthmus.server.responses.bounds import Bounds
from isthmus.server.responses.chain import Added, Chain, Described, Removed, as_turn
from isthmus.server.responses.ids import Place, conversation_of
from isthmus.server.responses.items import Item, items_of, with_ids
from isthmus.server.responses.pages import page_of
from isthmus.server.responses.replies import Conversation, DeletedConversation, ItemList
from isthmus.server.responses.requests import (
    ConversationUpdate,
    NewConversation,
    NewItems,
    Page,
    read,
)
from isthmus.server.storage.record import Record, new_id


class Conversations:
    """The routes."""

    def __init__(self, writer: Writer, archive: Archive, bounds: Bounds) -> None:
        self._writer = writer
        self._archive = archive
        self._bounds = bounds

    @property
    def _shelf(self) -> Shelf:
        return self._archive.shelf

    @property
    def _most_nbytes(self) -> int:
        """Bytes of the longest body whose items could fit into a context."""
        return self._writer.most_nbytes

    def routes(self) -> list[Endpoint]:
        """For Starlette."""
        all_, one = "/v1/conversations", "/v1/conversations/{id}"
        items, item, told = f"{one}/items", f"{one}/items/{{item}}", (Conversation,)
        listed = (ItemList,)
        return [
            Endpoint("POST", all_, self.create, takes=NewConversation, gives=told),
            Endpoint("GET", one, self.get, gives=told),
            Endpoint("POST", one, self.update, takes=ConversationUpdate, gives=told),
            Endpoint("DELETE", one, self.delete, gives=(DeletedConversation,)),
            Endpoint("GET", items, self.items, query=Page, gives=listed),
            Endpoint("POST", items, self.add_items, takes=NewItems, gives=listed),
            Endpoint("GET", item, self.item, gives=(dict[str, Any],)),
            Endpoint("DELETE", item, self.delete_item, gives=told),
        ]

    async def create(self, http: HttpRequest) -> Response:
        """A new conversation."""
        asked = await read(http, NewConversation, b"{}", self._most_nbytes)
        await self._shelf.allowances.require_disk(current().key)
        given = await asyncio.to_thread(items_of, asked.items or [], "items")
        record = await self._new_record(http)
        turns = [as_turn(Described(asked.metadata or {}), 1, record.created)]
        if given:
            items = with_ids(given, Place.at(record.id, 2).input)
            turns.append(as_turn(Added(items), 2, record.created))
        actor = await self._shelf.start(record)
        record = msgspec.structs.replace(record, position=len(turns))
        record = await self._shelf.keep(record, actor, turns)
        self._bounds.note(record.owner)
        return as_json(_told(record, asked.metadata or {}))

    async def _new_record(self, http: HttpRequest) -> Record:
        """An agent for the model of the first response, if that is the server's first model."""
        cards = await self._writer.models.files.cards()
        name = next((it.name for it, card in cards if card.generates), None)
        if name is None:
            raise HttpError(400, "no model of this server makes text", code="unsupported")
        completer = await self._writer.completer(http, name)
        recipe = await self._shelf.in_thread(completer.recipe)
        now = time.time()
        return Record(
            id=new_id(),
            name="",
            guest=recipe.guest,
            models={"default": name},
            args=dict(recipe.args),
            limits=asdict(recipe.limits),
            seed=secrets.randbits(63),
            created=now,
            used=now,
            owner=current().owner,
            kind="conversation",
        )

    async def get(self, http: HttpRequest) -> Response:
        """A conversation without its items."""
        record, chain = await self._find(http)
        return as_json(_told(record, chain.metadata))

    async def update(self, http: HttpRequest) -> Response:
        """Gives a conversation other metadata."""
        asked = await read(http, ConversationUpdate, most=self._most_nbytes)
        record, chain = await self._find(http)
        metadata = asked.metadata or {}
        await self._archive.change(record, chain, Described(metadata))
        return as_json(_told(record, metadata))

    async def delete(self, http: HttpRequest) -> Response:
        """Removes a conversation, with the responses that belong to it."""
        record, _ = await self._find(http)
        if self._shelf.is_held(record.id):
            raise locked(record)
        await self._shelf.delete(record.id)
        deleted: DeletedConversation = {
            "id": conversation_of(record.id),
            "object": "conversation.deleted",
            "deleted": True,
        }
        return as_json(deleted)

    # ------------------------------------------------------------------ items

    async def items(self, http: HttpRequest) -> Response:
        """The items of a conversation."""
        page = read_query(http, Page)
        _, chain = await self._find(http)
        return as_json(page_of(chain.items, page))

    async def add_items(self, http: HttpRequest) -> Response:
        """Adds items to a conversation.

        Raises HttpError for an id that it has already.
        """
        asked = await read(http, NewItems, most=self._most_nbytes)
        await self._shelf.allowances.require_disk(current().key)
        record, chain = await self._find(http)
        own = await asyncio.to_thread(items_of, asked.items, "items")
        given = await self._archive.resolved(own, chain.items)
        items = with_ids(given, Place.at(record.id, record.position + 1).input)
        known = {it["id"] for it in chain.items}
        if any(it["id"] in known for it in items):
            raise HttpError(400, "the conversation has an item of that id", param="items")
        await self._archive.change(record, chain, Added(items))
        return as_json(page_of(items, Page(limit=len(items), order="asc")))

    async def item(self, http: HttpRequest) -> Response:
        """One item of a conversation."""
        _, chain = await self._find(http)
        return as_json(_item(chain, http.path_params["item"]))

    async def delete_item(self, http: HttpRequest) -> Response:
        """Removes an item from a conversation."""
        record, chain = await self._find(http)
        item = _item(chain, http.path_params["item"])
        await self._archive.change(record, chain, Removed(item["id"]))
        return as_json(_told(record, chain.metadata))

    async def _find(self, http: HttpRequest) -> tuple[Record, Chain]:
        record, chain, _ = await self._archive.conversation(http.path_params["id"])
        current().agent = record.id
        return record, chain


def _item(chain: Chain, id_: str) -> Item:
    found = next((it for it in chain.items if it["id"] == id_), None)
    if found is None:
        raise HttpError(404, f"Item with id '{id_[:120]}' not found.", code="item_not_found")
    return found


def _told(record: Record, metadata: dict[str, str]) -> Conversation:
    return {
        "id": conversation_of(record.id),
        "object": "conversation",
        "created_at": int(record.created),
        "metadata": metadata,
    }
