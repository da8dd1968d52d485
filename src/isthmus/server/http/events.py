"""Server-sent events, and lines of JSON.

A stream of events that is silent for a while says that it goes on, so that no proxy takes it for
dead: by a comment, which readers of events pass over, or by an event of its API that means nothing.
The status and the headers are sent with the first of either. So an error has a status of its own
unless it comes after that. Lines have nothing that all of their readers would pass over.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse

from isthmus.server.http.entry import current
from isthmus.server.http.errors import body_of, note, shaped

_T = TypeVar("_T")
EVENTS, LINES = "text/event-stream", "application/x-ndjson"
"""Media types."""
DONE = b"data: [DONE]\n\n"
GOES_ON = b": still working\n\n"
"""A comment."""
_HEADERS = {"Cache-Control": "no-cache, no-store", "X-Accel-Buffering": "no"}
"""For caches, and for nginx."""
_encode = msgspec.json.Encoder().encode


def event(data: object, name: str | None = None, id_: str | None = None) -> bytes:
    """One event, whose data is JSON. `id_` is what clients send as Last-Event-ID when they come
    back after it."""
    head = b"" if id_ is None else b"id: " + id_.encode() + b"\n"
    head += b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + _encode(data) + b"\n\n"


def line(data: object) -> bytes:
    """A line of JSON."""
    return _encode(data) + b"\n"


async def respond(
    request: Request,
    events: AsyncIterator[bytes],
    kind: str = EVENTS,
    *,
    goes_on: bytes = GOES_ON,
) -> StreamingResponse:
    """A stream of events, or of lines if `kind` is LINES. What fails before the first of them, and
    before the stream has to say by `goes_on` that it goes on, is an ordinary error response."""
    silent_s = current().silent_s if kind == EVENTS else None
    first = asyncio.ensure_future(anext(events, b""))
    try:
        await unless_left(request, asyncio.wait({first}, timeout=silent_s))
    except BaseException:
        await _end(first, events)
        raise
    if first.done():
        first.result()
    return _Stream(first, events, kind, (silent_s, goes_on))


async def unless_left(request: Request, work: Awaitable[_T]) -> _T:
    """What the work gives. It is ended where the caller leaves: ClientDisconnect. The request's
    body must have been read."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        gone.cancel()  # awaiting its end would cost three turns of the event loop
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class _Stream(StreamingResponse):
    """The response of `respond`. `first` is under way, or done."""

    def __init__(
        self,
        first: asyncio.Future[bytes],
        events: AsyncIterator[bytes],
        kind: str,
        silence: tuple[float | None, bytes],
    ) -> None:
        super().__init__(_told(first, events, kind), media_type=kind, headers=_HEADERS)
        self._first = first
        self._events = events
        self._silent_s, self._goes_on = silence
        self._said_at = -math.inf
        """The event loop's time when something was sent last."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """For ASGI."""
        try:
            await super().__call__(scope, receive, send)
        finally:  # also if nothing was taken of it
            await _end(self._first, self._events)

    async def stream_response(self, send: Any) -> None:
        """Sends what comes, and what fills silences."""
        loop = asyncio.get_running_loop()
        headers = self.raw_headers
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        if self._first.done():
            self._said_at = loop.time()
        filling = asyncio.ensure_future(self._fill_silences(send))
        try:
            async for chunk in self.body_iterator:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                self._said_at = loop.time()
        finally:
            filling.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _fill_silences(self, send: Any) -> None:
        loop = asyncio.get_running_loop()
        while self._silent_s is not None:
            left_s = self._said_at + self._silent_s - loop.time()
            if left_s > 0:
                await asyncio.sleep(left_s)
                continue
            await send({"type": "http.response.body", "body": self._goes_on, "more_body": True})
            self._said_at = loop.time()


async def _end(work: asyncio.Future[bytes], events: AsyncIterator[bytes]) -> None:
    """Waits until the first event is not under way any more, and no other will come."""
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    await events.aclose()  # type: ignore[attr-defined]


async def _told(
    first: asyncio.Future[bytes], events: AsyncIterator[bytes], kind: str
) -> AsyncIterator[bytes]:
    """The events; an error among them is an event too, since the status was told already."""
    try:
        yield await first
        async for each in events:
            yield each
    except Exception as error:
        status, body = body_of(error)
        note(body)
        told = shaped(status, body)[1]
        yield line(told) if kind == LINES else event(told, "error")
