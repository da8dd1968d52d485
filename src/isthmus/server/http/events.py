"""Server-sent events, and lines of JSON."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse

from isthmus.server.http.errors import body_of, note, shaped

_T = TypeVar("_T")
EVENTS, LINES = "text/event-stream", "application/x-ndjson"
"""Media types."""
DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


def event(data: object, name: str | None = None) -> bytes:
    """One event, whose data is JSON."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + _encode(data) + b"\n\n"


def line(data: object) -> bytes:
    """A line of JSON."""
    return _encode(data) + b"\n"


async def respond(
    request: Request, events: AsyncIterator[bytes], kind: str = EVENTS
) -> StreamingResponse:
    """A stream of events, or of lines if `kind` is LINES. What fails before the first of them is an
    ordinary error response."""
    first = await unless_left(request, anext(events, b""))
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_told(first, events, kind), media_type=kind, headers=headers)


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


async def _told(first: bytes, events: AsyncIterator[bytes], kind: str) -> AsyncIterator[bytes]:
    """The events; an error among them is an event too, since the status was told already."""
    try:
        yield first
        async for each in events:
            yield each
    except Exception as error:
        status, body = body_of(error)
        note(body)
        told = shaped(status, body)[1]
        yield line(told) if kind == LINES else event(told, "error")
    finally:
        await events.aclose()  # type: ignore[attr-defined]
