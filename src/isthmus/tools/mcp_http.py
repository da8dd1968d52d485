"""A URL as an MCP server, by streamable HTTP, whose answers are bounded."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping

import httpx2
from mcp.client.streamable_http import streamable_http_client

from isthmus.tools.mcp_stdio import Streams

_CONNECT_S = 30.0


@contextlib.asynccontextmanager
async def streamable_http(
    url: str, headers: Mapping[str, str], answer_nbytes: int
) -> AsyncIterator[Streams]:
    """A connection to a server. An answer of more than `answer_nbytes` fails."""
    transport = _Bounded(answer_nbytes)
    timeout = httpx2.Timeout(_CONNECT_S, read=None)  # each call has a deadline of its own
    async with (
        httpx2.AsyncClient(headers=dict(headers), timeout=timeout, transport=transport) as client,
        streamable_http_client(
            url, http_client=client, max_sse_event_size=answer_nbytes
        ) as streams,
    ):
        yield streams


class _Bounded(httpx2.AsyncHTTPTransport):
    """A transport whose answers may be so long, but for streams of events, which last."""

    def __init__(self, most_nbytes: int) -> None:
        super().__init__()
        self._most_nbytes = most_nbytes

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            response.stream = _BoundedStream(response.stream, self._most_nbytes)
        return response


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, most_nbytes: int) -> None:
        self._stream = stream
        self._left = most_nbytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._stream:
            self._left -= len(part)
            if self._left < 0:
                raise httpx2.ReadError("the answer is too long")
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()
