"""Tools as guests call them: results, failures, bounds, and what a caller is told."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from isthmus import Actor, Limits, Runtime
from isthmus.errors import (
    ActorBusy,
    Cancelled,
    DeadlineExceeded,
    SettingsError,
    ToolFailed,
    ToolNotFound,
)
from isthmus.tools import Tool, ToolLimits, function_tool
from tests.tools.guests import CALLER, TWICE


@pytest.fixture(scope="module")
def shared() -> Iterator[Runtime]:
    with Runtime(device="null", threads=1) as runtime:
        yield runtime


@dataclass
class Weather:
    city: str
    degrees: float


def weather(city: str, days: int = 1) -> list[Weather]:
    """The weather of a city."""
    if city == "Atlantis":
        raise LookupError("it sank")
    return [Weather(city, 20.5 + day) for day in range(days)]


async def later(text: str) -> str:
    await asyncio.sleep(0)
    return text[::-1]


# ---------------------------------------------------------------------------------- results


RESULTS = {
    "bytes": (b"\0\xff", b"\0\xff"),
    "text": ("año", "año".encode()),
    "object": ({"a": [1, None]}, b'{"a":[1,null]}'),
    "nothing": (None, b"null"),
    "dataclass": (Weather("Rome", 1.5), b'{"city":"Rome","degrees":1.5}'),
}


@pytest.mark.parametrize("kind", RESULTS)
def test_results(shared: Runtime, kind: str) -> None:
    given, expected = RESULTS[kind]
    actor = shared.spawn(CALLER, tools={"it": lambda _: given})
    assert actor.send("=it x").data == expected


def test_arguments_are_checked_and_given_by_name(shared: Runtime) -> None:
    actor = shared.spawn(CALLER, tools={"weather": weather, "later": later})
    said = actor.send('=weather {"city": "Rome", "days": 2}').text
    assert [it["degrees"] for it in json.loads(said)] == [20.5, 21.5]
    assert actor.send('=later {"text": "abc"}').text == "cba"
    assert "its arguments are wrong: Expected `str`" in actor.send('=weather {"city": 3}').text
    assert "missing required field `city`" in actor.send("=weather {}").text
    assert "unknown field `town`" in actor.send('=weather {"city": "", "town": 1}').text
    assert "malformed" in actor.send("=weather nonsense").text


def test_what_a_guest_is_told_of_its_tools(shared: Runtime) -> None:
    actor = shared.spawn(CALLER, tools={"weather": weather, "raw": bytes.upper})
    first, second = json.loads(actor.send("?").data)
    assert first == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                },
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
    assert second["function"]["parameters"] == {"type": "object", "additionalProperties": True}
    assert shared.spawn(CALLER).send("?").data == b"[]"


# ---------------------------------------------------------------------------------- failures


def test_a_failure_is_text_for_the_guest_and_a_cause_for_the_caller(
    shared: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    actor = shared.spawn(CALLER, tools={"weather": weather}, label="ada")
    reply = actor.send('=weather {"city": "Atlantis"}')
    assert reply.text == "LookupError: it sank"
    assert [(it.name, it.error) for it in reply.tool_calls] == [("weather", "LookupError: it sank")]
    with pytest.raises(ToolFailed, match="the tool 'weather' failed: LookupError: it sank") as told:
        actor.send('!weather {"city": "Atlantis"}')
    assert isinstance(told.value.__cause__, LookupError)
    assert {it.agent for it in caplog.records} == {"ada"}  # type: ignore[attr-defined]


def test_an_unknown_tool_is_named_with_those_that_there_are(shared: Runtime) -> None:
    actor = shared.spawn(CALLER, tools={"one": bytes, "two": bytes})
    expected = r"a tool named 'three', and it was given one, two: give it by --tool three=COMMAND"
    with pytest.raises(ToolNotFound, match=expected):
        actor.send("!three x")
    assert "named 'three'" in actor.send("=three x").text
    with pytest.raises(ToolNotFound, match="given none"):
        shared.spawn(CALLER).send("!x y")


def test_a_failure_that_a_guest_survived_is_no_cause_of_the_next(shared: Runtime) -> None:
    actor = shared.spawn(CALLER, tools={"weather": weather, "fails": lambda _: 1 / 0})
    actor.send("=fails x")
    with pytest.raises(ToolNotFound):
        actor.send("!other x")


def test_tools_that_exit_or_give_what_is_no_result(shared: Runtime) -> None:
    def leave(_: bytes) -> None:
        raise SystemExit(3)

    actor = shared.spawn(CALLER, tools={"leave": leave, "odd": lambda _: object()})
    assert actor.send("=leave x").text == "SystemExit: 3"
    assert "of type object, is not text, bytes or JSON" in actor.send("=odd x").text
    assert actor.state == "idle"


def test_too_long_and_too_late(shared: Runtime) -> None:
    free = threading.Event()
    quick = ToolLimits(deadline_s=0.05, output_nbytes=1024)

    async def sleeps(_: bytes) -> None:
        await asyncio.sleep(60)

    tools = {
        "long": function_tool(lambda _: b"x" * 1025, limits=quick),
        "hangs": function_tool(lambda _: free.wait(60), limits=quick),
        "sleeps": function_tool(sleeps, limits=quick),
    }
    actor = shared.spawn(CALLER, tools=tools)
    assert actor.send("=long x").text == "its result is longer than 1.0 KiB"
    assert actor.send("=hangs x").text == "it did not answer within 0.05 s"
    assert actor.send("=sleeps x").text == "it did not answer within 0.05 s"
    free.set()


# ---------------------------------------------------------------------------------- ends


def test_a_message_ends_though_its_tool_hangs(shared: Runtime) -> None:
    free, inside = threading.Event(), threading.Event()

    def hang(_: bytes) -> None:
        inside.set()
        free.wait(60)

    try:
        with pytest.raises(DeadlineExceeded):
            shared.spawn(CALLER, tools={"hang": hang}).send("=hang x", deadline_s=0.2)
        actor = shared.spawn(CALLER, tools={"hang": hang})
        inside.clear()
        stream = actor.stream("!hang x")
        assert inside.wait(30)
        actor.stop()
        with pytest.raises(Cancelled):
            list(stream)
        assert actor.state == "idle"  # it gave up by itself
    finally:
        free.set()


def test_a_tool_that_was_given_up_may_not_close_its_actor_while_it_runs(shared: Runtime) -> None:
    """Nor what it started; afterwards it may."""
    said: list[str] = []

    async def close() -> str:
        def closes() -> None:
            try:
                actors[0].close()
            except ActorBusy as error:
                said.append(str(error))

        await asyncio.to_thread(closes)
        return "tried"

    actors: list[Actor] = []
    actors.append(shared.spawn(CALLER, tools={"close": close}))
    assert actors[0].send("=close {}").text == "tried"
    assert "let it return first" in said[0]
    actors[0].close()


def test_what_tools_did_is_in_the_log(shared: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "isthmus.guest")
    actor = shared.spawn(CALLER, tools={"upper": bytes.upper})
    before = actor.log_position
    reply = actor.send("=upper abc")
    assert [(it.name, it.nbytes, it.error) for it in reply.tool_calls] == [("upper", 3, "")]
    assert actor.log_position == before + 1
    assert "the tool 'upper': 3 bytes, in " in caplog.text
    assert 'isthmus_tool_calls_total{outcome="answered"}' in shared.metrics()


# ---------------------------------------------------------------------------------- undone


def test_an_undone_message_takes_back_each_run_once(shared: Runtime) -> None:
    did: list[str] = []

    def book(seat: str) -> str:
        did.append(f"book {seat}")
        return f"ticket {seat}"

    def cancel(arguments: bytes, result: bytes) -> None:
        did.append(f"cancel {json.loads(arguments)['seat']} {result.decode()}")

    tools: dict[str, Tool] = {"book": function_tool(book, undo=cancel)}
    actor = shared.spawn(CALLER, tools=tools, limits=Limits(on_failure="undo"))
    assert actor.send('=book {"seat": "1A"}').text == "ticket 1A"
    two = shared.spawn(TWICE, tools=tools, limits=Limits(on_failure="undo"))
    for _ in range(2):
        did.clear()
        with pytest.raises(ToolNotFound):
            two.send("x")
        assert did == ["book 1A", "book 2B", "cancel 2B ticket 2B", "cancel 1A ticket 1A"]
    assert two.n_messages == 0
    did.clear()
    kept = shared.spawn(TWICE, tools=tools, limits=Limits(on_failure="keep"))
    with pytest.raises(ToolNotFound):
        kept.send("x")
    assert did == ["book 1A", "book 2B"]


def test_what_cannot_be_taken_back_stays_done_and_is_logged(
    shared: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_arguments: bytes, _result: bytes) -> None:
        raise PermissionError("too late")

    book = function_tool(lambda seat: seat, undo=refuse)
    actor = shared.spawn(TWICE, tools={"book": book}, limits=Limits(on_failure="undo"))
    with pytest.raises(ToolNotFound):
        actor.send("x")
    assert caplog.text.count("what the tool 'book' did could not be undone") == 2
    assert actor.state == "idle"


def test_a_restored_agent_runs_no_tool_again(shared: Runtime, tmp_path: Path) -> None:
    n: list[bytes] = []
    tools = {"count": lambda it: n.append(it) or b"done"}
    actor = shared.spawn(CALLER, tools=tools)
    actor.send("=count x")
    actor.snapshot(tmp_path / "it")
    with shared.restore(tmp_path / "it", tools=tools) as again:
        assert again.log_position == actor.log_position > 0
        [fork] = again.fork()
        assert fork.log_position == again.log_position
    assert len(n) == 1


# ---------------------------------------------------------------------------------- bad input


def test_what_is_no_tool(shared: Runtime) -> None:
    def positional(a: int, /, b: int) -> None: ...
    def many(*them: int) -> None: ...
    def strange(a: int, b: threading.Thread) -> None: ...

    given = {
        "a tool is a function": 3,
        "the parameter a cannot be given by name": positional,
        "the parameter them cannot": many,
        "no JSON fits a parameter": strange,
    }
    for expected, it in given.items():
        with pytest.raises(SettingsError, match=expected):
            shared.spawn(CALLER, tools={"it": it})  # type: ignore[dict-item]
    for name in ("", "a b", "x" * 65, "\udcff"):
        with pytest.raises(SettingsError, match="no tool can be called"):
            shared.spawn(CALLER, tools={name: bytes})
    with pytest.raises(SettingsError, match="given by name"):
        shared.spawn(CALLER, tools=[bytes])  # type: ignore[arg-type]
    for wrong in ({"deadline_s": 0}, {"output_nbytes": 0}, {"output_nbytes": 2**40}):
        with pytest.raises(SettingsError):
            ToolLimits(**wrong)


def test_many_at_a_time_do_not_wait_for_each_other(shared: Runtime) -> None:
    barrier = threading.Barrier(8)
    tool = function_tool(lambda _: str(barrier.wait(60)))
    actors = [shared.spawn(CALLER, tools={"meet": tool}) for _ in range(8)]
    streams = [actor.stream("=meet x") for actor in actors]
    for stream in streams:
        list(stream)
    assert sorted(stream.reply.text for stream in streams) == list("01234567")
