"""Where a request is answered: by the server that owns its agent, which may be this one.

An agent that nobody owns, or whose owner has ended, is this server's once a request acquires it. As
long as an owner's lease lives it alone may answer, reachable or not. What was passed on once is not
passed on again: a server that turns out not to own the agent answers 421, and the first one looks
at the record anew. A client that sends the header `X-Isthmus-Redirect` is told by 307 where the
owner is, and goes there by itself.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from isthmus.errors import StorageError
from isthmus.server.agents.owning import AnotherAgent, Owning
from isthmus.server.cluster.named import (
    agent_of_body,
    agent_of_path,
    is_told_by_body,
    names_position,
)
from isthmus.server.cluster.passing import SAFE, NotThere, pass_on, target_of
from isthmus.server.http.entry import current
from isthmus.server.http.errors import HttpError
from isthmus.server.settings import ServerSettings
from isthmus.server.storage.home import Sharing
from isthmus.server.storage.node import Peer

_log = logging.getLogger("isthmus.server")
_PAUSE_S = 0.25
"""Seconds between two tries to reach an owner."""
_REPEATS = 3
"""How often a request that may come again is sent to owners which end before they answer."""
_REDIRECT = b"x-isthmus-redirect"
"""A header by which a client asks for 307 instead of an answer that is passed on."""
_HOME = b"x-isthmus-home"
"""A header by which a balancer says that it sends all requests of an agent to the same server: that
one is to own the agent, not only to pass requests on."""
_REMEMBERED = 4096
"""Agents whose owners are remembered, so that the store need not be asked."""

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]


@dataclass
class _Asked:
    """A request, and the agent that it is about."""

    agent: str | None
    scope: _Message
    receive: _Receive
    send: _Send
    body: bytes | None
    """None as long as it was not read."""

    async def read(self) -> None:
        if self.body is None:
            self.body = await _whole(self.receive)

    def may_come_again(self) -> bool:
        """Whether a request that was perhaps done may be sent once more: it reads only, or it names
        the position that it is for, so that it is done once."""
        return self.scope["method"] in SAFE or (
            self.scope["path"].endswith("/messages") and names_position(self.body or b"")
        )

    def received(self) -> _Receive:
        """For who answers here."""
        return self.receive if self.body is None else _again(self.body, self.receive)


class Placing:
    """See the module; an ASGI middleware around `app`, inside of what checks keys."""

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        owning: Owning,
        settings: ServerSettings,
        hand_over: Callable[[str], Awaitable[bool]],
    ) -> None:
        """`hand_over` lets another server have an agent that nobody uses; says whether it did."""
        self._app = app
        self._owning = owning
        self._hand_over = hand_over
        self._patience_s = 1.5 * settings.lease_s
        """Seconds for which an owner may be out of reach that may have ended."""
        self._owners: OrderedDict[str, Peer] = OrderedDict()

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        sharing = self._owning.sharing
        if scope["type"] != "http" or sharing is None:
            await self._app(scope, receive, send)
            return
        body = None
        agent = agent_of_path(scope["path"])
        if is_told_by_body(scope["method"], scope["path"]):
            body = await _whole(receive)
            agent = agent_of_body(body)
        asked = _Asked(agent, scope, receive, send, body)
        try:
            await self._place(asked, sharing, is_second=False)
        except AnotherAgent as it:
            scope = {**scope, "path": it.path, "raw_path": it.path.encode(), "query_string": b""}
            asked = _Asked(it.agent, scope, receive, send, it.body)
            await self._place(asked, sharing, is_second=True)

    async def _place(self, asked: _Asked, sharing: Sharing, *, is_second: bool) -> None:
        """Answers here, or has the owner answer. What was passed on is passed on again only if it
        `is_second`: about another agent than it was before."""
        agent, redirects = asked.agent, _wants_redirect(asked.scope)
        if agent is not None and redirects:
            self._owners.pop(agent, None)  # whom this server remembers may have ended
        peer = None if agent is None else await self._place_of(asked, sharing)
        if peer is None and agent is not None and await self._is_handed_over(agent, asked.scope):
            await asked.read()
            raise HttpError(421, f"agent {agent} is yours to take", code="elsewhere")
        if peer is not None:
            await asked.read()  # also for who is sent elsewhere: it may still send the body
            if current().passed_on and not is_second:
                raise HttpError(421, f"agent {agent} is another server's", code="elsewhere")
            if redirects and peer.address and not is_second:
                await _redirect(peer, asked)
                return
            if await _unless_left(self._ask(asked, peer, sharing), asked.receive):
                return
        await self._app(asked.scope, asked.received(), asked.send)

    async def _is_handed_over(self, agent: str, scope: _Message) -> bool:
        """Whether an agent goes to the server that passes this request on, as all requests of the
        agent come to that one."""
        is_home = any(name == _HOME for name, _ in scope["headers"])
        return is_home and current().passed_on and await self._hand_over(agent)

    async def _ask(self, asked: _Asked, peer: Peer | None, sharing: Sharing) -> bool:
        """Has the owner of an agent answer; False if this server may by now. HttpError 502, 503."""
        agent, body = asked.agent or "", asked.body or b""
        end = time.monotonic() + self._patience_s
        again = _REPEATS if asked.may_come_again() else 0
        while peer is not None:
            try:
                await pass_on(peer, asked.scope, body, asked.send, sharing.has_ended)
            except NotThere as refused:
                self._owners.pop(agent, None)
                if refused.is_lost and not again:
                    raise _lost() from None
                if refused.is_lost:  # the server was there just now, so its lease begins anew
                    again, end = again - 1, time.monotonic() + self._patience_s
                elif time.monotonic() > end:
                    raise _out_of_reach(peer) from None
                await asyncio.sleep(0.0 if refused.is_elsewhere else _PAUSE_S)
                peer = await self._owner(agent, sharing)
            else:
                self._owners[agent] = peer
                if len(self._owners) > _REMEMBERED:
                    self._owners.popitem(last=False)
                return True
        return False

    async def _place_of(self, asked: _Asked, sharing: Sharing) -> Peer | None:
        """Who answers: the owner of an agent, or who is to be; None for this server."""
        peer = await self._first_owner(asked, sharing)
        agent = asked.agent or ""
        is_message = asked.scope["path"].endswith("/messages")
        if peer is None and is_message and not sharing.owns(agent):
            return await self._owning.equal(agent)
        return peer

    async def _first_owner(self, asked: _Asked, sharing: Sharing) -> Peer | None:
        """As `_owner`. If the store is out of reach, what only reads is answered here, as far as
        this server knows the agent."""
        agent, method = asked.agent or "", asked.scope["method"]
        try:
            return await self._owner(agent, sharing)
        except StorageError:
            if method not in SAFE or not self._owning.knows(agent):
                raise
            return None

    async def _owner(self, agent: str, sharing: Sharing) -> Peer | None:
        """Who answers for an agent; None if this server does, or may."""
        if sharing.owns(agent):
            self._owners.pop(agent, None)
            return None
        known = self._owners.get(agent)
        if known is not None and not current().passed_on and not sharing.has_ended(known.number):
            return known
        return await self._owning.look(agent)


def _wants_redirect(scope: _Message) -> bool:
    """Whether a client goes to an agent's owner by itself. What was passed on does not."""
    asks = any(name == _REDIRECT for name, _ in scope["headers"])
    return asks and not current().passed_on


async def _redirect(peer: Peer, asked: _Asked) -> None:
    location = peer.address.encode() + target_of(asked.scope)
    headers = [(b"location", location), (b"content-length", b"0")]
    await asked.send({"type": "http.response.start", "status": 307, "headers": headers})
    await asked.send({"type": "http.response.body", "body": b""})


def _lost() -> HttpError:
    said = (
        "the server that owns the agent went away: ask what position the agent is at, "
        "and send the message again if it is not there"
    )
    return HttpError(502, said, code="owner_lost", kind="server_error", retry_s=1)


def _out_of_reach(peer: Peer) -> HttpError:
    _log.error("%s at %s lives and cannot be reached from here", peer.where, peer.address or "-")
    said = "the server that owns the agent lives, and cannot be reached from this one: try again"
    return HttpError(503, said, code="owner_unreachable", retry_s=1)


async def _whole(receive: _Receive) -> bytes:
    """The body, whose size is limited by whoever receives it."""
    pieces = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise HttpError(499, "the caller left", code="cancelled")
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)


def _again(body: bytes, receive: _Receive) -> _Receive:
    """Receives a body that was read already, and then what comes."""
    left: list[_Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> _Message:
        return left.pop() if left else await receive()

    return received


async def _unless_left(work: Awaitable[bool], receive: _Receive) -> bool:
    """What the work gives; True if it was ended as the caller left."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(receive())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        current().error = "cancelled"
        return True
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


# ---------------------------------------------------------------------------------- advertising


def address_of(settings: ServerSettings, host: str, port: int) -> str:
    """Where other servers reach this one that listens there."""
    if settings.advertise is not None:
        return settings.advertise
    try:
        at = ipaddress.ip_address(host)
    except ValueError:
        return f"http://{host}:{port}"
    if at.is_unspecified:
        at = ipaddress.ip_address(_own_address())
    return f"http://[{at}]:{port}" if at.version == 6 else f"http://{at}:{port}"


def _own_address() -> str:
    """This machine's address on the way to others. Nothing is sent."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # RFC 5737: nobody's
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"


async def advertise(owning: Owning, settings: ServerSettings, host: str, port: int) -> None:
    """Tells other servers where this one is reached; again with the next beat, if that fails."""
    sharing = owning.sharing
    if sharing is None:
        return
    address = address_of(settings, host, port)
    try:
        await asyncio.to_thread(sharing.advertise, address)
    except StorageError as error:
        _log.warning("other servers do not know yet that this one is at %s: %s", address, error)
