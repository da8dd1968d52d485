"""What is known of an agent without its memory: a JSON object, which is the truth about it."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import Struct

from isthmus.errors import SettingsError

KEPT_TURNS = 256
"""Snapshots of an agent's last turns; older ones are deleted, and their texts kept."""
_ID = re.compile(r"[a-z0-9]{12}")


class Turn(Struct, frozen=True, kw_only=True):
    """One message and its answer."""

    position: int
    """The agent's messages until then; 1 for the first."""
    at: float
    """When it was done, in seconds since 1970."""
    input: str
    output: str
    n_tokens: int
    seconds: float
    nbytes_written: int
    """By its snapshot."""


class Origin(Struct, frozen=True, kw_only=True):
    """Whose fork an agent is."""

    id: str
    position: int


class Stored(Struct, frozen=True, kw_only=True):
    """Which objects of an object store an agent is made of."""

    snapshots: dict[int, str] = {}
    """Ids of its snapshots, by position."""
    packs: dict[str, int] = {}
    """Names of the packs that hold their chunks, and the last position that needs each."""
    holder: int = 0
    """The lease under which the record was written last: no two holders write the same bytes."""


class Record(Struct, frozen=True, kw_only=True):
    """See the module."""

    id: str
    name: str
    guest: str
    """A bundled guest's name, or the hash of one that was brought."""
    models: dict[str, str]
    """What it was given: the server's model by the name that the guest knows."""
    args: dict[str, str]
    limits: dict[str, Any]
    seed: int
    created: float
    owner: str | None = None
    """The name of the key that made it; None where there were no keys."""
    origin: Origin | None = None
    position: int = 0
    turns: tuple[Turn, ...] = ()
    stored: Stored | None = None
    """Where the agents are in an object store."""

    @property
    def snapshot(self) -> str:
        """The name of its last snapshot."""
        return name_of(self.id, self.position)

    @property
    def outdated(self) -> int | None:
        """The position whose snapshot is one more than are kept."""
        return self.turns[-KEPT_TURNS - 1].position if len(self.turns) > KEPT_TURNS else None


def name_of(id_: str, position: int) -> str:
    """Of a snapshot in the store."""
    return f"{id_}.{position}"


def encode(record: Record) -> bytes:
    """As it is kept."""
    return msgspec.json.format(msgspec.json.encode(record), indent=1)


_decoder = msgspec.json.Decoder(Record)


def decode(data: bytes, id_: str, where: str) -> Record:
    """The agent's record, as it was found `where`. SettingsError for anything else."""
    try:
        record = _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise SettingsError(f"{where} is damaged: {error}") from None
    if not _ID.fullmatch(record.id) or id_ != record.id:
        raise SettingsError(f"{where} is of another agent: {record.id}")
    return record
