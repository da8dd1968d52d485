"""A program as an MCP server: JSON-RPC messages by its standard input and output, each a line.

The official client has such a transport, too. This one bounds a line, since a server may write one
without an end, and ends the server with all that it has started.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter

from isthmus.tools.process import Program
from isthmus.units import KIB

Streams = tuple[Any, Any]
"""What the client reads from and writes to: anyio's streams, or the client's own like them."""

_PART_NBYTES = 64 * KIB
_LOOK_S = 0.05
"""Seconds between two looks at whether a server has ended."""
_GRACE_S = 2.0
"""Seconds that a server has to end by itself once its input has ended."""


@contextlib.asynccontextmanager
async def stdio(program: Program, line_nbytes: int) -> AsyncIterator[Streams]:
    """Runs a server while open. A line of more than `line_nbytes` ends the connection. OSError."""
    process = await asyncio.create_subprocess_exec(
        *program.argv,
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL,
        cwd=program.folder,
        env={**os.environ, **program.environment},
        limit=line_nbytes,
        start_new_session=True,
    )
    arrived, incoming = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    outgoing, leaving = anyio.create_memory_object_stream[SessionMessage](0)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_read, process, arrived)
            tasks.start_soon(_write, process, leaving)
            tasks.start_soon(_end_others, process)
            try:
                yield incoming, outgoing
            finally:
                incoming.close()
                outgoing.close()
                with anyio.CancelScope(shield=True):
                    await _end(process)
    finally:
        arrived.close()
        leaving.close()


async def _read(
    process: Process, arrived: MemoryObjectSendStream[SessionMessage | Exception]
) -> None:
    """Passes on what the server says, and then drops the rest, until its output ends."""
    assert process.stdout is not None
    with anyio.CancelScope(shield=True):
        with arrived, contextlib.suppress(anyio.BrokenResourceError):
            while line := await _line(process.stdout):
                await arrived.send(_message(line))
        with anyio.move_on_after(_GRACE_S):  # a process that left the group may hold it open
            while await process.stdout.read(_PART_NBYTES):
                pass


def _message(line: bytes) -> SessionMessage | Exception:
    try:
        return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
    except ValueError as error:
        return error


async def _line(stream: asyncio.StreamReader) -> bytes:
    """The next line; empty at the end, and for a line that is too long."""
    try:
        return await stream.readline()
    except (ValueError, ConnectionError):
        return b""


async def _write(process: Process, leaving: MemoryObjectReceiveStream[SessionMessage]) -> None:
    assert process.stdin is not None
    with leaving, contextlib.suppress(OSError, anyio.ClosedResourceError):
        async for sent in leaving:
            text = sent.message.model_dump_json(by_alias=True, exclude_unset=True)
            process.stdin.write(f"{text}\n".encode())
            await process.stdin.drain()


async def _end(process: Process) -> None:
    """Lets the server end by itself, and ends what is left of its group."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        with anyio.move_on_after(_GRACE_S):
            await _exit_of(process)
    finally:
        _kill(process)  # also if the task is cancelled once more
    await _exit_of(process)


async def _end_others(process: Process) -> None:
    """Ends what the server has started once it has ended itself, since that may hold its output."""
    with anyio.CancelScope(shield=True):
        await _exit_of(process)
        _kill(process)


async def _exit_of(process: Process) -> None:
    """Returns once the process has ended. `wait` would wait for whoever has its pipes, too."""
    while process.returncode is None:
        await anyio.sleep(_LOOK_S)


def _kill(process: Process) -> None:
    """Ends the server's group, as far as it is there."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
