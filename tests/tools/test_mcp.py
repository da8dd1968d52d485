"""MCP servers as tools: official ones, and one that lies."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from isthmus import Limits, Runtime
from isthmus.errors import Cancelled, IsthmusError, SettingsError, ToolFailed
from isthmus.tools import ToolLimits
from isthmus.tools.command import program_of
from isthmus.tools.mcp import McpServer
from isthmus.tools.process import Program
from isthmus.tools.spec import Toolbox, spec_of
from tests.patience import eventually
from tests.tools.guests import CALLER, TWICE
from tests.tools.test_command import wait_gone

LIAR = Path(__file__).with_name("liar.py")


def liar(kind: str, *more: str) -> Program:
    return program_of([sys.executable, str(LIAR), kind, *more])


def run(server: McpServer, name: str, arguments: bytes = b"{}") -> bytes:
    return server.tools[name].run(arguments, lambda: None)


# ---------------------------------------------------------------------------------- undone

SEATS = """
from mcp.server.mcpserver import MCPServer

served = MCPServer("seats")

def note(line):
    with open("ledger", "a") as file:
        file.write(line + "\\n")

@served.tool()
def book(seat: str) -> dict[str, str]:
    note(f"book {seat}")
    return {"ticket": f"ticket {seat}"}

@served.tool()
def cancel(seat: str, ticket: str, why: str = "undone") -> str:
    note(f"cancel {seat}, {ticket}, {why}")
    return ""

@served.tool()
def forget(arguments: dict[str, str], result: dict[str, str]) -> str:
    note(f"forget {arguments['seat']}, {result['ticket']}")
    return ""

served.run()
"""


@pytest.fixture
def seats(tmp_path: Path) -> dict[str, object]:
    """A table's line for a server that books seats."""
    (tmp_path / "seats.py").write_text(SEATS)
    return {"mcp": [sys.executable, "seats.py"], "folder": str(tmp_path)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("undo", "lines"),
    [
        ("cancel", ["cancel 2B, ticket 2B, undone", "cancel 1A, ticket 1A, undone"]),
        ("forget", ["forget 2B, ticket 2B", "forget 1A, ticket 1A"]),
    ],
)
def test_a_tool_of_the_server_takes_back_another(
    undo: str,
    lines: list[str],
    seats: dict[str, object],
    tmp_path: Path,
    null_runtime: Runtime,
) -> None:
    """It gets what its parameters are named for: members of the result, arguments, or all."""
    with Toolbox({"hall": spec_of("hall", {**seats, "undo": {"book": undo}})}) as box:
        assert box.tools["hall_cancel"].take_back is None
        tools = {"book": box.tools["hall_book"]}
        actor = null_runtime.spawn(TWICE, tools=tools, limits=Limits(on_failure="undo"))
        with pytest.raises(IsthmusError):
            actor.send("x")
        assert eventually(lambda: (tmp_path / "ledger").read_text().splitlines()[2:] == lines)


@pytest.mark.slow
def test_tools_that_the_server_has_not_cannot_undo(seats: dict[str, object]) -> None:
    for undo in ({"book": "unbook"}, {"reserve": "cancel"}):
        with pytest.raises(SettingsError, match=r"no tool (unbook|reserve): it has book, cancel"):
            Toolbox({"hall": spec_of("hall", {**seats, "undo": undo})})


# ---------------------------------------------------------------------------------- official


@pytest.fixture(scope="module")
def clock() -> Iterator[McpServer]:
    """The reference server for the time."""
    with McpServer(program_of([sys.executable, "-m", "mcp_server_time"])) as server:
        yield server


def test_a_program(clock: McpServer) -> None:
    assert set(clock.tools) == {"get_current_time", "convert_time"}
    found = json.loads(run(clock, "get_current_time", b'{"timezone": "Etc/UTC"}'))
    assert found["timezone"] == "Etc/UTC"
    with pytest.raises(ToolFailed, match="Invalid timezone"):
        run(clock, "get_current_time", b'{"timezone": "Nowhere"}')
    with pytest.raises(ToolFailed, match="timezone"):
        run(clock, "get_current_time")
    described = clock.tools["get_current_time"].described("now")["function"]
    assert described["name"] == "now"
    assert "timezone" in described["parameters"]["properties"]


def test_by_guests_at_the_same_time(clock: McpServer, null_runtime: Runtime) -> None:
    tools = {f"time_{name}": tool for name, tool in clock.tools.items()}
    actors = [null_runtime.spawn(CALLER, tools=tools) for _ in range(8)]
    asked = '=time_get_current_time {"timezone": "Etc/UTC"}'
    streams = [actor.stream(asked) for actor in actors]
    for stream in streams:
        list(stream)
        assert json.loads(stream.reply.data)["timezone"] == "Etc/UTC"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server of the official package, by streamable HTTP."""
    import asyncio

    import uvicorn
    from mcp.server.mcpserver import MCPServer

    served = MCPServer("adder")

    @served.tool()
    def add(a: int, b: int) -> int:
        """Adds."""
        return a + b

    @served.tool()
    def large(n: int) -> str:
        return "x" * n

    @served.tool()
    async def hang() -> str:
        await asyncio.sleep(600)
        return ""

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            served.streamable_http_app(), log_level="error", timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/mcp"
        server.should_exit = True
        thread.join()


def test_a_url(url: str) -> None:
    limits = ToolLimits(deadline_s=60, output_nbytes=4096)
    with McpServer(url, headers={"Authorization": "Bearer x"}, limits=limits) as server:
        assert set(server.tools) == {"add", "large", "hang"}
        assert run(server, "add", b'{"a": 20, "b": 22}') == b"42"
        for n in (5000, 3_000_000):
            with pytest.raises(ToolFailed):
                run(server, "large", json.dumps({"n": n}).encode())
        assert run(server, "add", b'{"a": 1, "b": 2}') == b"3"


def test_a_call_by_http_that_hangs(url: str) -> None:
    with (
        McpServer(url, limits=ToolLimits(deadline_s=0.5)) as server,
        pytest.raises(ToolFailed, match=r"did not answer within 0.5 s"),
    ):
        run(server, "hang")


def test_nobody_there() -> None:
    with pytest.raises(SettingsError, match=r"http://127.0.0.1:1/mcp cannot be used"):
        McpServer("http://127.0.0.1:1/mcp?secret=x")


# ---------------------------------------------------------------------------------- lies


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("exits", "closed"),
        ("nonsense", "closed"),
        ("many", "more than 256 tools"),
        ("endless", "has no end"),
        ("array", "should be 'object'"),
        ("none", "no tool that can be used"),
    ],
)
def test_servers_that_cannot_be_used(kind: str, said: str) -> None:
    with pytest.raises(SettingsError, match=f"(?i){said}"):
        McpServer(liar(kind))


def test_one_that_says_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is ended, though it does not end with its input."""
    monkeypatch.setattr("isthmus.tools.mcp._OPEN_S", 4.0)
    with pytest.raises(SettingsError, match=r"did not answer within 4 s"):
        McpServer(liar("silent", str(tmp_path / "pid")))
    wait_gone(int((tmp_path / "pid").read_text()))


def test_tools_that_cannot_be_used_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with McpServer(liar("names")) as server:
        assert set(server.tools) == {"echo", "told"}
        assert len(server.tools["told"].description) == 4096
    said = caplog.text
    assert said.count("is left out") == 5
    for why in ("listed twice", "no tool can be called", "its schema has"):
        assert why in said


def test_one_that_dies_is_begun_again(tmp_path: Path) -> None:
    with McpServer(liar("good", str(tmp_path / "pid"))) as server:
        first = int((tmp_path / "pid").read_text())
        with pytest.raises(ToolFailed, match=r"(?i)closed"):
            run(server, "die")
        wait_gone(first)
        assert run(server, "echo", b'{"a": 1}') == b'{"a": 1}'
        second = int((tmp_path / "pid").read_text())
        assert second != first
    wait_gone(second)


def test_what_a_call_may_do() -> None:
    limits = ToolLimits(deadline_s=60, output_nbytes=4096)
    with McpServer(liar("good"), limits=limits) as server:
        with pytest.raises(ToolFailed, match="it broke"):
            run(server, "fail")
        with pytest.raises(ToolFailed, match="longer than"):
            run(server, "long")
        with pytest.raises(ToolFailed):
            run(server, "odd")
        with pytest.raises(ToolFailed, match="its arguments are wrong"):
            run(server, "echo", b"[1]")
        with pytest.raises(ToolFailed, match=r"(?i)closed"):
            run(server, "line")  # a line without an end
        assert run(server, "echo") == b"{}"


def used_s(server: McpServer) -> float:
    """Seconds of processor time that the server's thread has had."""

    async def asked() -> float:
        return time.thread_time()

    return asyncio.run_coroutine_threadsafe(asked(), server._loop).result()


def test_one_that_goes_on_talking_after_its_call() -> None:
    """Little is read of it while nobody calls it."""
    with McpServer(liar("good")) as server:
        assert run(server, "flood") == b"{}"
        time.sleep(1.0)  # what it had said during the call is taken first
        begun, used = time.monotonic(), used_s(server)
        time.sleep(1.0)
        assert used_s(server) - used < 0.2 * (time.monotonic() - begun)


def test_one_that_hangs() -> None:
    quick = ToolLimits(deadline_s=0.5)
    with (
        McpServer(liar("good"), limits=quick) as server,
        pytest.raises(ToolFailed, match=r"did not answer within 0.5 s"),
    ):
        run(server, "hang")
    with McpServer(liar("good")) as server:

        def check() -> None:
            raise Cancelled("enough")

        with pytest.raises(Cancelled):
            server.tools["hang"].run(b"{}", check)


def test_nothing_is_left_behind() -> None:
    server = McpServer(liar("good"))
    server.close()
    server.close()
    with pytest.raises(ToolFailed, match="is closed"):
        run(server, "echo")
    assert server._thread not in threading.enumerate()
