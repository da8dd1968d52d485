"""`GET /v1/servers`: which servers share the store, and what each computes with."""

from __future__ import annotations

from typing import Literal, TypedDict

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from isthmus.server.agents.shelf import Shelf
from isthmus.server.http.endpoint import Endpoint
from isthmus.server.storage.computes import Computes


class Member(TypedDict):
    """A server that lives. Where it is reached is no business of clients."""

    number: int
    this: bool
    """Whether it is the one that answers."""
    kind: str
    """The same for servers that compute the same bits."""
    device: str
    library: str
    features: list[str]
    """Instruction sets."""
    threads: int
    settings: dict[str, str | bool]
    """Those of models on which bits depend, the class of width among them."""


class Members(TypedDict):
    """All servers that live, the one that answers first; none in a folder."""

    object: Literal["list"]
    data: list[Member]


def routes(shelf: Shelf) -> list[Endpoint]:
    """For Starlette."""

    async def servers(_request: Request) -> Response:
        """The servers that share the store with this one."""
        sharing = shelf.owning.sharing
        found: list[Member] = []
        if sharing is not None:
            peers = await shelf.in_thread(sharing.peers)
            found = [_member(sharing.number, sharing.computes, this=True)]
            found += [_member(it.number, it.computes, this=False) for it in peers]
        listed: Members = {"object": "list", "data": found}
        return JSONResponse(listed)

    return [Endpoint("GET", "/v1/servers", servers, gives=(Members,))]


def _member(number: int, computes: Computes, *, this: bool) -> Member:
    return {
        "number": number,
        "this": this,
        "kind": computes.kind,
        "device": computes.device,
        "library": computes.library,
        "features": list(computes.features),
        "threads": computes.threads,
        "settings": computes.settings,
    }
