"""An MCP server's tools: those of a program, or of a URL, by the official client.

Owns one thread with an event loop, and a connection that lives in a task of it. A server that ends
is started again for the next call. What it says is not believed: names, schemas, lengths and the
number of tools are checked, and a call ends at its deadline whatever the server does.

    thread of a tool ── call ──► loop's thread ── Client ──► program, or URL
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import mcp_types
import msgspec
from mcp import Client, MCPError

from isthmus.errors import SettingsError, ToolFailed
from isthmus.printable import printable
from isthmus.tools.mcp_http import streamable_http
from isthmus.tools.mcp_pace import Pace, paced
from isthmus.tools.mcp_stdio import stdio
from isthmus.tools.process import Program
from isthmus.tools.tool import Check, Tool, ToolLimits, bytes_of, require_name, too_late
from isthmus.tools.waiting import LOOK_S
from isthmus.units import KIB, MIB

_log = logging.getLogger("isthmus.tools")
_MAX_TOOLS = 256
_MAX_PAGES = 64
_MAX_DESCRIPTION = 4 * KIB
"""Characters of a description that models are told."""
_MAX_SCHEMA_NBYTES = 64 * KIB
_OPEN_S = 60.0
"""Seconds that a server has to begin and to list its tools: npx and uvx may fetch it first."""
_CLOSE_S = 5.0
"""Seconds that a connection has to end in order, and then to be cut off."""
_OVERHEAD_NBYTES = MIB
"""Bytes that a message may have beside a result, and twice it, since JSON escapes."""
_MAX_SAID = 500
"""Characters of an error that are told: what the client says of a wrong answer quotes it."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class McpTool(Tool):
    """One tool of a server."""

    server: McpServer
    name: str
    """Its name there."""

    def run(self, arguments: bytes, check: Check) -> bytes:
        """What the server answers: its texts, or else its structured content as JSON."""
        try:
            given = msgspec.json.decode(arguments or b"{}", type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise ToolFailed(f"its arguments are wrong: {error}") from None
        return self.server.call(self.name, given, self.limits, check)


class McpServer:
    """See the module. Close it, or use it in `with`."""

    def __init__(
        self,
        target: Program | str,
        *,
        headers: Mapping[str, str] | None = None,
        limits: ToolLimits | None = None,
    ) -> None:
        """`target` is a program or a URL; `headers` are for a URL, `limits` of each call.

        SettingsError if it cannot be begun, or lists no tools that can be used.
        """
        self._target = target
        self._headers = dict(headers or {})
        self._limits = limits or ToolLimits()
        self._link: _Link | None = None
        self._failed: set[_Link] = set()
        """Connections that could not be made, as long as they are still ending."""
        self._lock: asyncio.Lock
        self._pace: Pace
        ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._run, args=(ready,), name="isthmus mcp", daemon=True
        )
        self._thread.start()
        ready.wait()
        try:
            self.tools = self._listed()
            """The server's tools, by their names there."""
        except BaseException:
            self.close()
            raise

    def __str__(self) -> str:
        if isinstance(self._target, str):
            return self._target.partition("?")[0]
        return " ".join(self._target.argv)

    def __enter__(self) -> McpServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def call(self, name: str, arguments: dict[str, Any], limits: ToolLimits, check: Check) -> bytes:
        """The result of one call, for which it waits. Raises ToolFailed, or as `check`."""
        if self._loop.is_closed():
            raise ToolFailed(f"the MCP server {self} is closed")
        work = asyncio.run_coroutine_threadsafe(self._call(name, arguments, limits), self._loop)
        end = time.monotonic() + limits.deadline_s
        try:
            while True:
                with contextlib.suppress(concurrent.futures.TimeoutError):
                    return bytes_of(work.result(LOOK_S), limits)
                check()
                if time.monotonic() >= end:
                    raise too_late(limits)
        finally:
            work.cancel()

    def close(self) -> None:
        """Ends the connection, the server if it is a program, and the thread; a second call does
        nothing."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._unlink_all(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    # ------------------------------------------------------------------ on the loop's thread

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._lock = asyncio.Lock()
        self._pace = Pace()
        self._loop.call_soon(ready.set)
        try:
            self._loop.run_forever()
        finally:
            left = asyncio.all_tasks(self._loop)
            for task in left:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    async def _client(self) -> Client:
        """The client of a connection that stands, which is made if there is none."""
        async with self._lock:
            if self._link is None:
                self._link = _Link(self._connected())
            try:
                with self._pace.call():
                    return await self._link.client()
            except BaseException:
                link, self._link = self._link, None
                self._failed.add(link)
                link.when_ended(lambda: self._failed.discard(link))
                raise

    def _connected(self) -> Client:
        most = 2 * self._limits.output_nbytes + _OVERHEAD_NBYTES
        if isinstance(self._target, str):
            transport = streamable_http(self._target, self._headers, most)
        else:
            transport = stdio(self._target, most)
        return Client(paced(transport, self._pace), cache=None)

    async def _unlink(self, which: Client | None = None) -> None:
        """Ends the connection, if it is that of a client."""
        link = self._link
        if link is not None and (which is None or link.is_of(which)):
            self._link = None
            await link.close()

    async def _unlink_all(self) -> None:
        """Ends every connection."""
        await self._unlink()
        await asyncio.gather(*(link.close() for link in self._failed))

    async def _call(self, name: str, arguments: dict[str, Any], limits: ToolLimits) -> object:
        with self._pace.call():
            return await self._result(name, arguments, limits)

    async def _result(self, name: str, arguments: dict[str, Any], limits: ToolLimits) -> object:
        try:
            client = await asyncio.wait_for(self._client(), limits.deadline_s)
        except Exception as error:
            raise ToolFailed(f"{self} cannot be reached: {_said(error)}") from error
        try:
            result = await client.call_tool(name, arguments)
        except Exception as error:
            if isinstance(error, MCPError) and error.code == mcp_types.CONNECTION_CLOSED:
                await self._unlink(client)  # another one is made for the next call
            raise ToolFailed(_said(error)) from error
        found = _content(result)
        if result.is_error:
            raise ToolFailed(found if isinstance(found, str) else json.dumps(found))
        return found

    # ------------------------------------------------------------------ what it lists

    def _listed(self) -> dict[str, McpTool]:
        try:
            found = self._wait(self._list(), _OPEN_S)
        except Exception as error:
            raise SettingsError(f"the MCP server {self} cannot be used: {_said(error)}") from error
        tools: dict[str, McpTool] = {}
        for it in found:
            if wrong := _wrong(it) or ("listed twice" if it.name in tools else None):
                _log.warning("%s: the tool %.80r is left out: %s", self, it.name, wrong)
                continue
            tools[it.name] = McpTool(
                description=(it.description or it.title or "")[:_MAX_DESCRIPTION],
                parameters=it.input_schema,
                limits=self._limits,
                server=self,
                name=it.name,
            )
        if not tools:
            raise SettingsError(f"the MCP server {self} has no tool that can be used")
        return tools

    async def _list(self) -> list[mcp_types.Tool]:
        client, cursor = await self._client(), None
        found: list[mcp_types.Tool] = []
        for _ in range(_MAX_PAGES):
            with self._pace.call():
                page = await client.list_tools(cursor=cursor)
            found += page.tools
            if len(found) > _MAX_TOOLS:
                raise ToolFailed(f"it lists more than {_MAX_TOOLS} tools")
            cursor = page.next_cursor
            if not cursor:
                return found
        raise ToolFailed("its list of tools has no end")

    def _wait(self, work: Coroutine[Any, Any, _T], seconds: float) -> _T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(seconds)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise ToolFailed(f"it did not answer within {seconds:g} s") from None


class _Link:
    """One connection. A task of its own opens and closes it, as the client wants."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._leave = asyncio.Event()
        self._ready: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
        self._task = asyncio.ensure_future(self._hold())

    async def client(self) -> Client:
        """The client, once it is connected. Raises why it cannot be."""
        try:
            return await asyncio.shield(self._ready)
        except asyncio.CancelledError:
            self._task.cancel()
            raise

    def is_of(self, client: Client) -> bool:
        """Whether it is a client's."""
        return client is self._client

    def when_ended(self, what: Callable[[], object]) -> None:
        """Has `what` be called once nothing of it is left."""
        self._task.add_done_callback(lambda _: what())

    async def close(self) -> None:
        """Ends it. What goes wrong meanwhile is nobody's loss."""
        self._leave.set()
        if not self._ready.done():
            self._task.cancel()
        _, left = await asyncio.wait([self._task], timeout=_CLOSE_S)
        for task in left:
            task.cancel()
            await asyncio.wait([task], timeout=_CLOSE_S)

    async def _hold(self) -> None:
        try:
            async with self._client as client:
                if not self._ready.cancelled():
                    self._ready.set_result(client)
                await self._leave.wait()
        except BaseException as error:
            if self._ready.done():
                _log.info("an MCP connection ended with %s", _said(error))
            elif isinstance(error, asyncio.CancelledError):
                self._ready.cancel()
            else:
                self._ready.set_exception(error)


def _wrong(tool: mcp_types.Tool) -> str | None:
    """Why a tool cannot be used; None if it can."""
    try:
        require_name(tool.name)
        size = len(json.dumps(tool.input_schema))
    except (SettingsError, ValueError, TypeError, RecursionError) as error:
        return str(error)
    return f"its schema has {size} bytes" if size > _MAX_SCHEMA_NBYTES else None


def _content(result: mcp_types.CallToolResult) -> object:
    """What a result says: text if there is any."""
    texts = [_text(it) for it in result.content]
    if not texts and result.structured_content is not None:
        return result.structured_content
    return "\n".join(texts)


def _text(block: object) -> str:
    if isinstance(block, mcp_types.TextContent):
        return block.text
    if isinstance(block, mcp_types.EmbeddedResource):
        text = getattr(block.resource, "text", None)
        return text if isinstance(text, str) else f"[a resource: {block.resource.uri}]"
    if isinstance(block, mcp_types.ResourceLink):
        return str(block.uri)
    kind = getattr(block, "mime_type", None) or type(block).__name__
    return f"[{kind}, which is no text]"


def _said(error: BaseException) -> str:
    """An error in a short line. Groups are of the client's tasks: the first of them tells."""
    while isinstance(inner := getattr(error, "exceptions", None), tuple) and inner:
        error = inner[0]
    line = " ".join(str(error).split())
    return printable(line[:_MAX_SAID]) or type(error).__name__
