"""What servers that share a store know and have said, as one state; and which states are bad."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

SOURCE, FORK = 0, 1
"""The agents: one that is there at the beginning, and one that is forked from it."""
QUARANTINE_DEATHS = 2
"""Owners that end until an agent is set apart. The code's number is one more."""


@dataclass(frozen=True)
class Rules:
    """What the protocol demands. Each rule can be left out, to see what it is there for."""

    conditional: bool = True
    """A commit replaces the version that its node has read, not whatever is there."""
    acquires: bool = True
    """Whoever takes an agent writes its record, with one more epoch."""
    requires: bool = True
    """A node that has acquired or made something looks whether its own claim is held."""
    fences_ended: bool = True
    """Before packs of ended nodes are removed, no such node can write a record any more."""
    fences_lost: bool = True
    """Before a node's own packs are removed, none of its writes that had no answer can be carried
    out any more."""
    owns: bool = True
    """Only a node's own packs, and those of ended nodes, are removed."""
    lists_again: bool = True
    """A collector reads records until no new ones have appeared meanwhile."""
    mourns: bool = True
    """Whoever takes an agent from a node that has ended counts that in its record."""
    mourns_fenced: bool = True
    """So does a collector that fences such an agent, of whose owner nothing is known later."""
    quarantines: bool = True
    """An agent is not used whose owners ended too often since its last turn."""


class Bounds(NamedTuple):
    """How much of each may happen in one history."""

    nodes: int = 2
    messages: int = 2
    """Of each agent."""
    crashes: int = 0
    ends: int = 0
    """Claims that are ended by others."""
    losses: int = 0
    """Writes whose sender gives up."""
    releases: int = 0
    collections: int = 0
    forks: int = 0
    removals: int = 0
    poisonings: int = 0
    """Crashes of nodes by an agent that they use."""


class Pack(NamedTuple):
    number: int
    agent: int
    position: int


class Turn(NamedTuple):
    number: int
    epoch: int
    position: int


class Record(NamedTuple):
    holder: int
    """The node that owns the agent; 0 for none."""
    epoch: int
    turns: tuple[Turn, ...]
    packs: frozenset[Pack]
    deaths: int = 0
    """Nodes that owned the agent when they ended, since its last turn."""


class Write(NamedTuple):
    """A request that is under way."""

    agent: int
    seen: Record | None
    new: Record | None


class Doing(NamedTuple):
    """What a node does for a caller: `acquire`, `admit`, `save`, `commit`, `create`, `keep` or
    `remove`."""

    what: str
    write: Write


class Collecting(NamedTuple):
    garbage: frozenset[Pack]
    """What is removed unless a record names it."""
    ended: frozenset[int]
    unread: frozenset[int]
    read: frozenset[int]


class Node(NamedTuple):
    number: int
    """0 for one that is down."""
    owned: tuple[Record | None, ...] = (None, None)
    there: frozenset[Pack] = frozenset()
    doing: Doing | None = None
    collecting: Collecting | None = None


class State(NamedTuple):
    records: tuple[Record | None, ...]
    removed: frozenset[int]
    ended: tuple[bool, ...]
    """Of each claim, the first of which is node 1's."""
    packs: frozenset[Pack]
    under_way: frozenset[Write]
    nodes: tuple[Node, ...]
    acknowledged: frozenset[tuple[int, Turn | None]]
    """Turns by their agents; None for an agent that was made."""
    left: Bounds
    victims: int = 0
    """Nodes that the agent `SOURCE` has ended since its last turn."""


def first(bounds: Bounds) -> State:
    """Agent 0 is there, and nobody owns it."""
    base = Pack(0, SOURCE, 0)
    return State(
        records=(Record(0, 0, (), frozenset([base])), None),
        removed=frozenset(),
        ended=(False,) * bounds.nodes,
        packs=frozenset([base]),
        under_way=frozenset(),
        nodes=tuple(Node(number) for number in range(1, bounds.nodes + 1)),
        acknowledged=frozenset([(SOURCE, None)]),
        left=bounds,
    )


def problem_of(state: State) -> str | None:
    """What must never be."""
    if state.victims > QUARANTINE_DEATHS:
        return f"an agent has ended {state.victims} nodes, one after another"
    for agent, turn in state.acknowledged:
        record = state.records[agent]
        if agent in state.removed:
            continue
        if record is None:
            return f"agent {agent} was acknowledged and is gone"
        if turn is not None and turn not in record.turns:
            return f"{turn} of agent {agent} was acknowledged and is lost"
        if record.packs - state.packs:
            return f"agent {agent} names packs that are gone: {set(record.packs - state.packs)}"
    return None
