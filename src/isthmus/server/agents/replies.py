"""What the routes of agents answer, as types, and how they are made; see `openai/replies.py`."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

import msgspec

from isthmus.actor.reply import ToolCall
from isthmus.server.storage.record import Origin, Record, Turn


class AgentSummary(TypedDict):
    """An agent without its turns."""

    object: Literal["agent"]
    id: str
    name: str
    guest: str
    models: dict[str, str]
    args: dict[str, str]
    argv: tuple[str, ...]
    limits: dict[str, Any]
    seed: int
    created: float
    owner: str | None
    origin: Origin | None
    position: int
    tools: list[str]
    require: str
    """How exactly it must be brought back: `exact` or `state-exact`."""
    quarantined: bool
    """Whether it is set apart, as several servers ended while they had it in use."""


class Agent(AgentSummary):
    """An agent and its turns."""

    turns: list[Turn]


class AgentList(TypedDict):
    """All agents, newest first."""

    object: Literal["list"]
    data: list[AgentSummary]


class Deleted(TypedDict):
    """Which agent is no more."""

    id: str
    deleted: Literal[True]


class AgentUsage(TypedDict):
    """Tokens of a message and its answer."""

    total_tokens: int


class Told(TypedDict):
    """A message that is done."""

    agent: str
    message: str
    """Its id, with which the ids of its events begin."""
    position: int
    output: str
    usage: AgentUsage
    seconds: float
    tool_calls: list[ToolCall]
    checkpoint_nbytes: int
    ended: str
    """Why the answer ended: `end`, `stopped`, `max_tokens`, `n_ctx`, `exit` or the name of a
    limit."""
    exit_status: int
    """What a command exited with; 0 for any other guest."""
    exactness: str
    """How the agent came into memory for this message: `exact` if it was there, or as it was saved;
    `state-exact` if a server saved it that rounds in another way; `replayed`."""


class Begun(TypedDict):
    """A message whose answer is made in the background."""

    agent: str
    message: str
    """Its id, with which the ids of its events begin."""
    position: int
    """The agent's position once it is done."""


class Stopped(TypedDict):
    """Whether an answer was under way that now ends."""

    id: str
    stopped: bool


class SessionMap(TypedDict):
    """Where a session lies: offsets and lengths in bytes."""

    begin: int
    logits: tuple[int, int]
    kv: tuple[int, int]
    n_tokens: int
    n_ctx: int


class MemoryMap(TypedDict):
    """What lies where in an agent's memory. Ranges are (first chunk, how many)."""

    id: str
    position: int
    nbytes: int
    chunk_nbytes: int
    used: list[tuple[int, int]]
    changed: list[tuple[int, int]]
    shared: list[tuple[int, int]]
    stack: tuple[int, int] | None
    """(begin, nbytes), as `data`; null where the module does not tell."""
    data: tuple[int, int] | None
    sessions: list[SessionMap]


class LogLine(TypedDict):
    """Something that a guest has logged."""

    at: float
    """In seconds since 1970."""
    level: str
    text: str


class AgentLog(TypedDict):
    """What an agent has logged last, oldest first."""

    id: str
    lines: list[LogLine]


class Busy(TypedDict):
    """An agent whose answer is under way."""

    id: str
    name: str
    seconds: float
    """Since its message began."""
    n_pieces: int
    """Pieces that it has emitted: one for each token, for most guests."""


class Totals(TypedDict):
    """What is counted of all agents and requests since the server began."""

    tokens_decoded: int
    tokens_prefilled: int
    steps: int
    """Decode steps."""
    tokens_in_steps: int
    """Tokens that these computed: divided by `steps`, the mean size of a batch."""
    bytes_copied: int
    in_memory: int
    """Guests that are in memory: of agents, and of stateless requests."""
    resident_nbytes: int | None
    """The process's resident memory, mapped weights among it; null where the system does not
    tell."""


class Activity(TypedDict):
    """What agents do now."""

    answering: list[Busy]
    totals: Totals | None
    """Null for a key that may not read `/metrics`."""


class GuestCard(TypedDict):
    """A guest that agents can be made from."""

    id: str
    kind: str
    """`bundled` or `brought`."""
    name: str
    """A bundled guest's id, or what was given with one that was brought; empty for none."""


class GuestList(TypedDict):
    """All guests that agents can be made from."""

    object: Literal["list"]
    data: list[GuestCard]


def told(record: Record, turn: Turn) -> Told:
    """A message that is done, as callers are told."""
    return {
        "agent": record.id,
        "message": turn.message,
        "position": turn.position,
        "output": turn.output,
        "usage": {"total_tokens": turn.n_tokens},
        "seconds": turn.seconds,
        "tool_calls": msgspec.to_builtins(turn.tool_calls),
        "checkpoint_nbytes": turn.nbytes_written,
        "ended": turn.ended,
        "exit_status": turn.exit_status,
        "exactness": turn.restored or "exact",
    }


def summary(record: Record) -> AgentSummary:
    """An agent without its turns, as callers are told."""
    return {
        "object": "agent",
        "id": record.id,
        "name": record.name,
        "guest": record.guest,
        "models": record.models,
        "args": record.args,
        "argv": record.argv,
        "limits": record.limits,
        "seed": record.seed,
        "created": record.created,
        "owner": record.owner,
        "origin": msgspec.to_builtins(record.origin),
        "position": record.position,
        "tools": list(record.tools),
        "require": record.require,
        "quarantined": record.quarantined,
    }


def whole(record: Record, turns: list[Turn]) -> Agent:
    """An agent and its turns, as callers are told."""
    return {**summary(record), "turns": turns}
