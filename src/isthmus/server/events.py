"""Server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.responses import StreamingResponse

from isthmus.server.errors import body_of

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


def event(data: object, name: str | None = None) -> bytes:
    """One event, whose data is JSON."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + _encode(data) + b"\n\n"


async def respond(events: AsyncIterator[bytes], **how: Any) -> StreamingResponse:
    """A stream of events. What fails before the first of them is an ordinary error response."""
    try:
        first = await anext(events)
    except StopAsyncIteration:
        first = b""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(
        _told(first, events), media_type="text/event-stream", headers=headers, **how
    )


async def _told(first: bytes, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The events; an error among them is an event too, since the status was told already."""
    try:
        yield first
        async for each in events:
            yield each
    except Exception as error:
        yield event(body_of(error)[1], "error")
    finally:
        await events.aclose()  # type: ignore[attr-defined]
