"""The turns of an agent as a chain of responses, or as a conversation.

A turn's `kept` is one of these, as JSON:

1. `response`: a response that is done, and its input.
2. `begun`: one that runs in the background, and its input.
3. `ended`: what became of one that had begun, at another position.
4. `items`, `removed`, `metadata`: changes of a conversation.
5. `deleted`: a response that is told to nobody any more. What goes on from it still has its items.

A response that failed, was cancelled or never ended adds nothing to the conversation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

from isthmus.errors import SnapshotInvalid
from isthmus.server.responses.items import Item
from isthmus.server.storage.record import Turn

Told: TypeAlias = "dict[str, Any]"
"""A response as callers are told."""
_SAID = ("completed", "incomplete")


class Answered(Struct, frozen=True, tag="response", tag_field="kind"):
    """See the module."""

    input: list[Item]
    response: Told
    last_event: int
    """The number of its last event."""


class Begun(Struct, frozen=True, tag="begun", tag_field="kind"):
    """See the module."""

    input: list[Item]
    response: Told


class Ended(Struct, frozen=True, tag="ended", tag_field="kind"):
    """See the module."""

    id: str
    response: Told
    last_event: int


class Added(Struct, frozen=True, tag="items", tag_field="kind"):
    """See the module."""

    items: list[Item]


class Removed(Struct, frozen=True, tag="removed", tag_field="kind"):
    """See the module."""

    id: str


class Described(Struct, frozen=True, tag="metadata", tag_field="kind"):
    """See the module."""

    metadata: dict[str, str]


class Deleted(Struct, frozen=True, tag="deleted", tag_field="kind"):
    """See the module."""

    id: str


Kept: TypeAlias = Answered | Begun | Ended | Added | Removed | Described | Deleted
_decoder: msgspec.json.Decoder[Kept] = msgspec.json.Decoder(Kept)


@dataclass
class Stored:
    """A response as it is kept."""

    response: Told
    input: list[Item]
    """Its own items, without those of responses before it."""
    _items: list[Item | None]
    """Items of the conversation. More may have been added since, and some may have been removed."""
    _n_before: int
    position: int
    """Where the agent was when it was done."""
    last_event: int | None = None
    """None if it has not ended."""
    is_deleted: bool = False

    @property
    def before(self) -> list[Item]:
        """The items of the conversation before it, without those that were removed since."""
        return [it for it in self._items[: self._n_before] if it is not None]

    @property
    def is_said(self) -> bool:
        """Whether something can go on from it."""
        return self.last_event is not None and self.response["status"] in _SAID


@dataclass
class Chain:
    """What the turns of an agent come to."""

    responses: dict[str, Stored] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    nbytes: int = 0
    """Bytes of it on the disk, about."""
    position: int = 0
    """Where the conversation changed last."""
    _items: list[Item | None] = field(default_factory=list)
    _places: dict[str, list[int]] = field(default_factory=dict)
    """Where in the list the items of each id are: several in chains of earlier releases."""

    @property
    def items(self) -> list[Item]:
        """The whole conversation."""
        return [it for it in self._items if it is not None]

    @staticmethod
    def of(turns: Iterable[Turn], agent: str) -> Chain:
        """The chain of an agent. SnapshotInvalid if a turn is something else."""
        chain = Chain()
        for turn in turns:
            try:
                kept = _decoder.decode(turn.kept or "")
            except msgspec.MsgspecError as error:
                said = f"turn {turn.position} of agent {agent} is damaged: {error}"
                raise SnapshotInvalid(said) from None
            chain.nbytes += len(turn.kept or "")
            chain._add(kept, turn.position)
        return chain

    def _add(self, kept: Kept, position: int) -> None:
        match kept:
            case Answered(given, told, last):
                self._end(self._stored(told, given, position), told, last, position)
            case Begun(given, told):
                self.responses[told["id"]] = self._stored(told, given, position)
            case Ended(id_, told, last):
                self._end(self.responses[id_], told, last, position)
            case Added(items):
                self._append(items, position)
            case Removed(id_):
                self._remove(id_)
                self.position = position
            case Described(metadata):
                self.metadata = metadata
            case Deleted(id_):
                self.responses[id_].is_deleted = True

    def _end(self, stored: Stored, told: Told, last_event: int, position: int) -> None:
        stored.response, stored.last_event, stored.position = told, last_event, position
        self.responses[told["id"]] = stored
        if stored.is_said:
            self._append([*stored.input, *told["output"]], position)

    def _stored(self, told: Told, given: list[Item], position: int) -> Stored:
        return Stored(told, given, self._items, len(self._items), position)

    def _append(self, items: list[Item], position: int) -> None:
        for item in items:
            self._places.setdefault(item["id"], []).append(len(self._items))
            self._items.append(item)
        self.position = position

    def _remove(self, id_: str) -> None:
        """Removes an item; nothing if it was removed before, by two requests at once."""
        for place in self._places.pop(id_, ()):
            self._items[place] = None

    def find(self, id_: str) -> Stored | None:
        """A response; None if it is not there any more, or never was."""
        found = self.responses.get(id_)
        return None if found is None or found.is_deleted else found


def as_turn(kept: Kept, position: int, at: float, n_tokens: int = 0, seconds: float = 0) -> Turn:
    """The turn that keeps it."""
    return Turn(
        position=position,
        at=at,
        input="",
        output="",
        n_tokens=n_tokens,
        seconds=seconds,
        nbytes_written=0,
        kept=msgspec.json.encode(kept).decode(),
    )
