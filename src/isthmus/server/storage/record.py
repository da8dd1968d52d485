"""What is known of an agent without its memory: a JSON object, which is the truth about it.

A server keeps a `Record` of each agent in memory, which is what lists show. The rest, which grows
with the agent, is read when it is asked for.
"""

from __future__ import annotations

import re
import secrets
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from isthmus.actor.reply import ToolCall
from isthmus.config import Level
from isthmus.errors import SettingsError
from isthmus.units import MIB

KEPT_TURNS = 256
"""Snapshots of an agent's last turns; older ones are deleted. Their texts are kept longer."""
QUARANTINE_DEATHS = 3
"""Owners that end one after another, without a turn in between, until an agent is set apart."""
MAX_NBYTES = 256 * MIB
"""Bytes of the largest record that is read. Earlier releases kept all texts in it."""
_ID = re.compile(r"[a-z0-9]{12}")
_R = TypeVar("_R", bound="Record")


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
    tool_calls: tuple[ToolCall, ...] = ()
    """Tools that the guest called, in this order."""
    n_decoded: int = 0
    """Of its tokens, those that the answer was decoded from; 0 in records of earlier releases."""
    ended: str = ""
    """Why the answer ended: `end` by itself, `stopped` by its caller, `max_tokens`, `n_ctx` as
    the context is full, `exit` as a command exited with another status than 0, or the name of one
    of the `Limits`; empty in earlier releases' records."""
    exit_status: int = 0
    """What a command exited with."""
    n_left_out: int = 0
    """Characters of input and output that are not kept."""
    n_files: int = 0
    """Pictures and sounds of the message, which the agent has and nobody else."""
    restored: str = ""
    """How exactly the agent was brought back for this turn, if not exactly: `state-exact` or
    `replayed`."""
    message: str = ""
    """The id of its message; empty in earlier releases' records."""
    told: str | None = None
    """What was told while the answer came, if that is not `output`."""
    kept: str | None = None
    """JSON of what the turn is, where that is no message with a text: see `responses/chain.py`. It
    is kept whole."""


class Segment(Struct, frozen=True, kw_only=True):
    """Turns that are kept apart from the record; see `history`."""

    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    last: int
    """The position of its last turn."""
    nbytes: int
    holder: int = 0
    """In an object store, the number of the node that uploaded it; see `mirror`."""


class Origin(Struct, frozen=True, kw_only=True):
    """Whose fork an agent is."""

    id: str
    position: int


class Midway(Struct, frozen=True, kw_only=True):
    """A message whose answer goes on after the server has ended: what it is begun from anew, or
    what goes on with it together with the snapshot `midway_name`."""

    message: str
    """Its id, which no other message has."""
    input: str
    n_files: int = 0
    files: tuple[str, ...] = ()
    """Its files as data URIs; none once it is saved, since the guest has them then."""
    background: bool = False
    """Whether it goes on though its caller leaves."""
    saved: bool = False
    """Whether there is a snapshot from the middle of its answer."""
    n_tries: int = 0
    """How often a server went on with it since it was saved last."""


class Failure(Struct, frozen=True, kw_only=True):
    """A message whose answer could not be gone on with, for who asks what became of it."""

    message: str
    status: int
    """HTTP's."""
    code: str
    reason: str


class Stored(Struct, frozen=True, kw_only=True):
    """Which objects of an object store an agent is made of."""

    snapshots: dict[int, str] = {}
    """Its snapshots by position: ids, each after the number of the node that uploaded it."""
    packs: dict[str, int] = {}
    """Names of the packs that hold their chunks, and the last position that needs each."""
    holder: Annotated[int, Meta(ge=0, lt=1 << 53)] = 0
    """The number of the node that owns the agent; 0 for none. In records of earlier releases, the
    lease under which the record was written last."""
    epoch: Annotated[int, Meta(ge=0, lt=1 << 53)] = 0
    """How often the agent was acquired: no two owners write the same bytes."""
    midway: str = ""
    """The snapshot from the middle of an answer; empty if there is none."""
    passing: tuple[str, ...] = ()
    """Of the packs, those that only the middle of an answer needs."""


class Record(Struct, frozen=True, kw_only=True):
    """What a server keeps in memory of each agent."""

    id: str
    name: str
    guest: str
    """A bundled guest's name, or the hash of one that was brought."""
    models: dict[str, str]
    """What it was given: the server's model by the name that the guest knows."""
    args: dict[str, str]
    """Options for the guest; a command's variables."""
    limits: dict[str, Any]
    seed: int
    created: float
    owner: str | None = None
    """The name of the key that made it; None where there were no keys."""
    origin: Origin | None = None
    position: int = 0
    kind: Literal["agent", "response", "conversation"] = "agent"
    """What it is made for: messages of its own, a chain of responses, or a conversation of them."""
    tools: tuple[str, ...] = ()
    """Names of the server's tools that it was given."""
    argv: tuple[str, ...] = ()
    """A command's arguments."""
    used: float = 0.0
    """When its last turn was done, in seconds since 1970; 0 in records of earlier releases."""
    require: Level = "state-exact"
    """How exactly it must be brought back: `exact` keeps it among servers that compute alike."""
    made_on: str = ""
    """The `Computes.kind` of the server that did its last turn; empty in a folder."""
    deaths: int = 0
    """Servers that owned the agent when they ended, since its last turn."""
    midway: Midway | None = None
    """The message that it is in the middle of, if the answer outlives the server."""
    failed: Failure | None = None
    """The last one of those that could not be gone on with."""

    @property
    def quarantined(self) -> bool:
        """Whether the agent is set apart, as it may be what ended its owners."""
        return self.deaths >= QUARANTINE_DEATHS

    @property
    def n_own(self) -> int:
        """Turns that it has had itself: without those of the agent that it was forked from."""
        return self.position - (0 if self.origin is None else self.origin.position)

    @property
    def snapshot(self) -> str:
        """The name of its last snapshot."""
        return name_of(self.id, self.position)

    @property
    def outdated(self) -> int | None:
        """The position whose snapshot is one more than are kept."""
        return self.position - KEPT_TURNS if self.position > KEPT_TURNS else None


class FullRecord(Record, frozen=True, kw_only=True):
    """All of it, as it is kept."""

    turns: tuple[Turn, ...] = ()
    """The last ones. In records of earlier releases, all of them."""
    segments: tuple[Segment, ...] = ()
    """Those before, oldest first."""
    stored: Stored | None = None
    """Where the agents are in an object store."""

    def brief(self) -> Record:
        """What is kept in memory."""
        return Record(**{name: getattr(self, name) for name in Record.__struct_fields__})


def new_id() -> str:
    """An id that no agent has."""
    alphabet = "abcdefghijklmnopqrstuvwxyz0123456789"
    return "".join(secrets.choice(alphabet) for _ in range(12))


def name_of(id_: str, position: int) -> str:
    """Of a snapshot in the store."""
    return f"{id_}.{position}"


def new_message() -> str:
    """An id that no message has."""
    return f"m{new_id()}"


def midway_name(record: Record) -> str | None:
    """The name of the snapshot from the middle of its answer; None if there is none. No position
    is written like it."""
    midway = record.midway
    return f"{record.id}.{midway.message}" if midway is not None and midway.saved else None


def encode(record: FullRecord) -> bytes:
    """As it is kept."""
    return msgspec.json.encode(record)


_full = msgspec.json.Decoder(FullRecord)
_brief = msgspec.json.Decoder(Record)


def decode(data: bytes, id_: str, where: str) -> FullRecord:
    """The agent's record, as it was found `where`. SettingsError for anything else."""
    return _checked(_full, data, id_, where)


def decode_brief(data: bytes, id_: str, where: str) -> Record:
    """As `decode`, without what is not kept in memory."""
    return _checked(_brief, data, id_, where)


def _checked(decoder: msgspec.json.Decoder[_R], data: bytes, id_: str, where: str) -> _R:
    try:
        record = decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        raise SettingsError(f"{where} is damaged: {reason}") from None
    if not _ID.fullmatch(record.id) or id_ != record.id:
        raise SettingsError(f"{where} is of another agent: {record.id}")
    return record
