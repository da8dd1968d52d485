"""Ray Serve's choice of a replica for each request. Ray imports this by name."""

from __future__ import annotations

import random
from typing import Any

from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

from isthmus.ray.routing import HOME, agent_of, ranked


class AgentRouter(ConsistentHashRouter):  # type: ignore[misc] # Ray's is not typed
    """Sends what is about an agent to the replica that `ranked` says, and all else to the less busy
    one of two. Ray's own router is the base, since its loop keeps each request with its choice; its
    choice itself is by a header, and here by the path."""

    async def choose_replicas(
        self, candidate_replicas: list[Any], pending_request: Any = None
    ) -> list[list[Any]]:
        """Replicas that may take a request: groups in the order in which they are tried, in each of
        which the least busy one is taken."""
        if pending_request is None:
            return [candidate_replicas] if candidate_replicas else []
        pending_request.routing_context.should_backoff = True
        scope = _scope_of(pending_request)
        agent = None if scope is None else agent_of(scope)
        if agent is None or not candidate_replicas:
            return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]
        named = {it.replica_id.unique_id: it for it in candidate_replicas}
        order = ranked(agent, named)
        scope["headers"] = [it for it in scope["headers"] if it[0] != HOME]
        scope["headers"].append((HOME, order[0].encode()))
        return [[named[name]] for name in order]


def _scope_of(pending_request: Any) -> Any:
    """The ASGI scope that Ray's proxy hands on with a request; None for a call by a handle."""
    scopes = (getattr(it, "asgi_scope", None) for it in pending_request.args)
    return next((it for it in scopes if it is not None), None)
