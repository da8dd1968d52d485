"""Which replica is asked for an agent: the same one each time, as far as replicas stay the same.

By rendezvous hashing: each replica has a number for each agent, and the highest one wins. A replica
that comes or goes moves only agents that it wins or had won. Whoever computes this gets the same,
so proxies need not talk to each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

from isthmus.server.cluster.named import agent_of_path

HOME = b"x-isthmus-home"
"""A header: to a replica, which one is the first for the agent; from that one to its server, that
the server is to own the agent."""
FALLBACKS = 2
"""Replicas that are tried for an agent after the first one, if that has no room."""


def agent_of(scope: Mapping[str, Any]) -> str | None:
    """The agent that an HTTP request is about, by its path; None if any replica will do."""
    path = scope.get("path")
    return agent_of_path(path) if isinstance(path, str) else None


def ranked(agent: str, replicas: Collection[str]) -> list[str]:
    """Replicas in the order in which they are tried for an agent: the first one, and fallbacks."""
    return sorted(replicas, key=lambda it: _weight(agent, it), reverse=True)[: 1 + FALLBACKS]


def _weight(agent: str, replica: str) -> bytes:
    return hashlib.blake2b(f"{agent} {replica}".encode(), digest_size=8).digest()
