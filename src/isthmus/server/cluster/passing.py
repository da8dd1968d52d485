"""A request passed on to the server that owns its agent, and the answer as it comes back.

The client's own key stays here, where it was checked: what goes on is the key's name, and the token
of the server that it goes to, which only readers of the store know. A connection is made for each
request. Whoever leaves here leaves there too.

A connection proves nothing: a proxy, or the system of a process that is stopped, accepts one for a
server that is dead. So the server is greeted first (`GET /healthz` with its token), and the request
goes on the same connection once the server itself has answered. Until then nothing was sent that
could have been done, and the lease decides whose the agent is.

============================  ==================================================================
what the other server does    what happens
============================  ==================================================================
refuses the connection        `NotThere`: it may have ended, or begin again
does not answer the greeting  `NotThere`, the same
is not the owner (421)        `NotThere`: the record says who is
says nothing                  one waits for as long as its lease lives: silence proves nothing
ends before it answers        `NotThere` for what may be sent again, else 502: nobody knows what was
                              done
ends while it answers         the answer is cut off
============================  ==================================================================
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import quote, urlsplit

import h11

from isthmus.server.http.entry import current
from isthmus.server.keys.admission import KEY, TOKEN
from isthmus.server.storage.node import Peer

_CONNECT_S = 3.0
"""Seconds for a connection, and as many for the answer to a greeting."""
_LOOK_S = 1.0
"""Seconds of silence after which one looks whether the other server's lease lives."""
_READ_NBYTES = 65536
_OK, _MISDIRECTED = 200, 421
_OF_PROXIES = (502, 503, 504)
"""Statuses by which a proxy says that the server behind it is not there."""
_GREETING = b"/healthz"
SAFE = ("GET", "HEAD", "OPTIONS")
"""Methods that only read."""
_NOT_SENT = {
    *(b"host", b"authorization", b"x-api-key", b"cookie", b"origin", b"content-length"),
    *(b"connection", b"keep-alive", b"transfer-encoding", b"te", b"trailer", b"upgrade"),
    *(b"proxy-authorization", b"proxy-connection", b"expect", b"x-request-id", KEY, TOKEN),
}
_NOT_TOLD = {
    *(b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"trailer"),
    *(b"date", b"server", b"x-request-id", b"request-id"),
}

_Message = MutableMapping[str, Any]
_Send = Callable[[_Message], Awaitable[None]]


class NotThere(Exception):
    """A server did not take a request, so that it may be asked elsewhere."""

    def __init__(self, *, is_elsewhere: bool = False, is_lost: bool = False) -> None:
        super().__init__()
        self.is_elsewhere = is_elsewhere
        """Whether the server said so itself."""
        self.is_lost = is_lost
        """Whether the server had the request, and nobody knows what it did."""


async def pass_on(
    peer: Peer,
    scope: _Message,
    body: bytes,
    send: _Send,
    has_ended: Callable[[int], bool],
) -> None:
    """Has another server answer a request. NotThere if it did not, or nobody knows.

    `has_ended` says whether the server of a number has ended, and waits for nothing.
    """
    async with _connected(peer) as (reader, writer):
        wire = _Wire(reader, writer, lambda: has_ended(peer.number))
        await _greet(wire, peer)
        try:
            await wire.ask(scope["method"], target_of(scope), _heads(peer, scope["headers"], body))
            head = await wire.answer(body)
        except (OSError, h11.ProtocolError, EOFError):
            raise NotThere(is_lost=True) from None
        if head.status_code == _MISDIRECTED:
            raise NotThere(is_elsewhere=True)
        if head.status_code in _OF_PROXIES and not _is_its_own(head):
            raise NotThere(is_lost=True)
        headers = [(name, value) for name, value in head.headers if _is_told(name)]
        status = head.status_code
        await send({"type": "http.response.start", "status": status, "headers": headers})
        async for piece in wire.pieces():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _greet(wire: _Wire, peer: Peer) -> None:
    """Returns once the server itself has answered on this connection. NotThere."""
    headers = [(b"host", urlsplit(peer.address).netloc.encode()), (TOKEN, peer.token.encode())]
    try:
        status = await asyncio.wait_for(wire.status_of(_GREETING, headers), _CONNECT_S)
    except (OSError, h11.ProtocolError, EOFError, asyncio.TimeoutError):
        raise NotThere from None
    if status != _OK:
        raise NotThere(is_elsewhere=status == _MISDIRECTED)


@contextlib.asynccontextmanager
async def _connected(
    peer: Peer,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection of its own. NotThere."""
    at = urlsplit(peer.address)
    if at.hostname is None:
        raise NotThere  # it does not listen yet
    tls = ssl.create_default_context() if at.scheme == "https" else None
    port = at.port or (80 if tls is None else 443)
    connecting = asyncio.open_connection(at.hostname, port, ssl=tls)
    try:
        reader, writer = await asyncio.wait_for(connecting, _CONNECT_S)
    except (OSError, asyncio.TimeoutError):
        raise NotThere from None
    try:
        yield reader, writer
    finally:
        writer.transport.abort()  # the answer is whole, or nobody wants the rest


class _Wire:
    """One request and its answer."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        has_ended: Callable[[], bool],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._has_ended = has_ended
        self._state = h11.Connection(h11.CLIENT)

    async def status_of(self, target: bytes, headers: list[tuple[bytes, bytes]]) -> int:
        """What a GET is answered with; then the connection is free for the next request. OSError,
        EOFError, h11.ProtocolError, also if the connection is to be closed."""
        await self.ask("GET", target, headers)
        head = await self.answer(b"")
        async for _ in self.pieces():
            pass
        self._state.start_next_cycle()
        return head.status_code

    async def ask(self, method: str, target: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        """Sends the head. OSError."""
        request = h11.Request(method=method.encode(), target=target, headers=headers)
        await self._send(request)

    async def answer(self, body: bytes) -> h11.Response:
        """Sends the body; the head of the answer. OSError, EOFError, h11.ProtocolError."""
        if body:
            await self._send(h11.Data(data=body))
        await self._send(h11.EndOfMessage())
        while True:
            event = await self._next()
            if isinstance(event, h11.Response):
                return event

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body of the answer, as it comes. OSError, EOFError, h11.ProtocolError."""
        while not isinstance(event := await self._next(), h11.EndOfMessage):
            if isinstance(event, h11.Data):
                yield bytes(event.data)

    async def _send(self, event: Any) -> None:
        self._writer.write(self._state.send(event) or b"")
        await self._writer.drain()

    async def _next(self) -> Any:
        while (event := self._state.next_event()) is h11.NEED_DATA:
            self._state.receive_data(await self._read())
        if isinstance(event, h11.ConnectionClosed):
            raise EOFError
        return event

    async def _read(self) -> bytes:
        while True:
            try:
                return await asyncio.wait_for(self._reader.read(_READ_NBYTES), _LOOK_S)
            except asyncio.TimeoutError:
                if self._has_ended():
                    raise EOFError from None


def _is_its_own(head: h11.Response) -> bool:
    """Whether an answer is the server's, which repeats the request's id, and not a proxy's."""
    return (b"x-request-id", current().id.encode()) in list(head.headers)


def _is_told(name: bytes) -> bool:
    """Whether a header of the answer is for the client: what limits a key is told here."""
    return name not in _NOT_TOLD and not name.startswith(b"x-ratelimit-")


def target_of(scope: _Message) -> bytes:
    """The path and the query of a request, as they came."""
    path = bytes(scope["raw_path"])
    return path + b"?" + scope["query_string"] if scope["query_string"] else path


def _heads(
    peer: Peer, given: Iterable[tuple[bytes, bytes]], body: bytes
) -> list[tuple[bytes, bytes]]:
    """What the other server is told: all but what is between the client and this one."""
    entry = current()
    headers = [(name, value) for name, value in given if name not in _NOT_SENT]
    headers += [(b"host", urlsplit(peer.address).netloc.encode()), (TOKEN, peer.token.encode())]
    if entry.key is not None:
        headers.append((KEY, quote(entry.key.name, safe="").encode()))
    if body:
        headers.append((b"content-length", str(len(body)).encode()))
    return [*headers, (b"x-request-id", entry.id.encode())]
