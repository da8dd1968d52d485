"""How fast the messages of an MCP server are taken.

A server may send as much as it likes, and each message takes processor time here. While a call is
open, its deadline bounds that. Between calls a server has nothing to say for long, so its messages
are taken slowly, and what it writes beyond that waits in its own pipe or socket.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectSendStream
from mcp.shared.message import SessionMessage

from isthmus.tools.mcp_stdio import Streams

_REST = 50
"""Seconds without a message for each second of processor time that the last one took."""
_MAX_REST_S = 0.5


class Pace:
    """The calls that are open, and the rest between messages while none is. For one event loop."""

    def __init__(self) -> None:
        self._n_open = 0
        self._called = anyio.Event()
        """Set when a call begins; another one is made when the last call ends."""
        self._used_s = time.thread_time()
        """Processor time of the loop's thread when a message was taken last."""

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """An open call: messages are taken as they come."""
        self._n_open += 1
        self._called.set()
        try:
            yield
        finally:
            self._n_open -= 1
            if not self._n_open:
                self._called = anyio.Event()
                self._used_s = time.thread_time()

    async def rest(self) -> None:
        """Waits after a message, until a call begins at the latest."""
        took_s = time.thread_time() - self._used_s
        with anyio.move_on_after(min(_REST * took_s, _MAX_REST_S)):
            await self._called.wait()
        self._used_s = time.thread_time()


@contextlib.asynccontextmanager
async def paced(
    transport: AbstractAsyncContextManager[Streams], pace: Pace
) -> AsyncIterator[Streams]:
    """A connection whose messages are taken at that pace."""
    async with transport as (incoming, outgoing), anyio.create_task_group() as tasks:
        arrived, taken = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        tasks.start_soon(_pass_on, incoming, arrived, pace)
        try:
            yield taken, outgoing
        finally:
            taken.close()
            tasks.cancel_scope.cancel()


async def _pass_on(
    incoming: Any, arrived: MemoryObjectSendStream[SessionMessage | Exception], pace: Pace
) -> None:
    with arrived, contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        async for message in incoming:
            await arrived.send(message)
            await pace.rest()
