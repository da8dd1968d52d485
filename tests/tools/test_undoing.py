"""Messages that are undone take back what their tools did, once, by every way to run a guest."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import wasmtime

from isthmus import Limits, Runtime
from isthmus.errors import SettingsError, StorageError, ToolNotFound
from isthmus.server.agents.answers import Answers, sent_of
from isthmus.server.agents.requests import NewMessage
from isthmus.server.agents.shelf import Shelf
from isthmus.server.agents.tools import AgentTools
from isthmus.server.settings import ServerSettings
from isthmus.server.storage.record import Record, Turn, new_id
from isthmus.tools import function_tool
from isthmus.tools.spec import Toolbox, spec_of, specs_of_table
from tests.patience import eventually
from tests.server.conftest import Serving
from tests.server.process import no_models
from tests.tools.guests import CALLER, TWICE
from tests.tools.test_cli import isthmus

LEDGER = """
import json

def note(line):
    with open("ledger", "a") as file:
        file.write(line + "\\n")

def book(seat: str) -> str:
    note(f"book {seat}")
    return f"ticket {seat}"

def cancel(arguments, result):
    note(f"cancel {json.loads(arguments)['seat']}, {result.decode()}")
"""
BOOKS = """
import json, sys
from ledger import book, note
said = json.load(sys.stdin)
if sys.argv[1:] == ["cancel"]:
    note(f"cancel {said['arguments']['seat']}, {said['result']}")
else:
    print(book(**said))
"""
TWO = ["book 1A", "book 2B", "cancel 2B, ticket 2B", "cancel 1A, ticket 1A"]
"""What becomes of a message of TWICE that is undone."""
WAITS = bytes(
    wasmtime.wat2wasm("""(module
  (import "isthmus" "tool_call" (func $call (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "bookwait") (data (i32.const 8) "{\\"seat\\": \\"1A\\"}")
  (func (export "on_message") (param i32) (result i32)
    (drop (call $call (i32.const 0) (i32.const 4) (i32.const 8) (i32.const 14)))
    (drop (call $call (i32.const 4) (i32.const 4) (i32.const 8) (i32.const 14)))
    (i32.const 0)))""")
)
"""Books a seat, and waits for long."""


class Place:
    """A folder where tools note what they do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "ledger.py").write_text(LEDGER)
        (folder / "books.py").write_text(BOOKS)
        (folder / "twice.wasm").write_bytes(TWICE)
        command = [sys.executable, "books.py"]
        (folder / "command.toml").write_text(
            f"""[tools]
book = {{ command = {json.dumps(command)}, undo = {json.dumps([*command, "cancel"])} }}
wait = "sleep 60"
"""
        )
        (folder / "function.toml").write_text(
            """[tools]
book = { function = "ledger:book", undo = "ledger:cancel" }
wait = "sleep 60"
"""
        )

    def taken(self) -> list[str]:
        """What was noted since the last look."""
        ledger = self.folder / "ledger"
        lines = ledger.read_text().splitlines() if ledger.exists() else []
        ledger.unlink(missing_ok=True)
        return lines


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("undoing"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["command", "function"])
def test_run_and_chat(place: Place, kind: str) -> None:
    null = ("--device", "null", "--tools", f"{kind}.toml")
    isthmus(place.folder, "run", "twice.wasm", *null, "--message", "x", code=1)
    assert place.taken() == TWO
    model = ("--model", "fake:nothing", "--guest", "twice.wasm")
    isthmus(place.folder, "chat", *model, *null, given="x\ny\n")
    assert place.taken() == [*TWO, *TWO]


@pytest.fixture(params=["command", "function"])
def serving(
    request: pytest.FixtureRequest, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Serving]:
    monkeypatch.chdir(place.folder)
    place.taken()
    made = Serving(tmp_path / "data", "--device", "null", "--config", f"{request.param}.toml")
    yield made
    assert made.stop() == 0


def bring(serving: Serving, wasm: bytes, **more: Any) -> str:
    guest = serving.client.post("/v1/guests", content=wasm).json()["id"]
    return str(
        serving.post("/v1/agents", {"guest": guest, "tools": ["book", "wait"], **more})["id"]
    )


@pytest.mark.slow
def test_serve(serving: Serving, place: Place) -> None:
    for limits in ({}, {"on_failure": "undo"}, {"on_failure": "close"}):
        id_ = bring(serving, TWICE, limits=limits)
        for _ in range(2):
            path = f"/v1/agents/{id_}/messages"
            assert serving.client.post(path, json={"input": "x"}).status_code == 422
            assert place.taken() == TWO
    done = bring(serving, CALLER)
    told = serving.post(f"/v1/agents/{done}/messages", {"input": '=book {"seat": "3C"}'})
    assert told["output"] == "ticket 3C"
    early = serving.post(f"/v1/agents/{done}/fork", {"position": 0})
    assert early["position"] == 0
    serving.kill()
    serving.start()
    assert serving.get(f"/v1/agents/{done}")["position"] == 1
    assert place.taken() == ["book 3C"]  # what is done stays done

    id_ = bring(serving, WAITS)
    path = f"{serving.url}/v1/agents/{id_}/messages"
    with pytest.raises(httpx.ReadTimeout):  # a caller who leaves
        httpx.post(path, json={"input": "x"}, timeout=httpx.Timeout(60, read=1))
    assert eventually(lambda: (place.folder / "ledger").read_text().count("\n") == 2)
    assert place.taken() == ["book 1A", "cancel 1A, ticket 1A"]
    assert serving.get(f"/v1/agents/{id_}")["position"] == 0


def test_a_turn_that_cannot_be_saved_has_not_happened(
    null_runtime: Runtime, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it taken back once its saving has succeeded, whatever becomes of the caller."""
    monkeypatch.chdir(place.folder)
    settings, books = ServerSettings(data=tmp_path), [sys.executable, "books.py"]
    table = {"book": {"command": books, "undo": [*books, "cancel"]}}
    message = NewMessage(input='=book {"seat": "3C"}')
    record = Record(
        id=new_id(), name="", guest="", models={}, args={}, limits={}, seed=1, created=0.0,
        tools=("book",),
    )  # fmt: skip

    def refuse(*_: object) -> None:
        raise StorageError("the disk is full")

    async def live(box: Toolbox) -> int:
        shelf = Shelf(no_models(null_runtime), settings, AgentTools(box))
        answers = Answers(shelf, settings)
        guest = shelf.guests.add(CALLER)
        made = await shelf.create(msgspec.structs.replace(record, guest=guest))
        with monkeypatch.context() as patch:
            patch.setattr(shelf, "write", refuse)
            async with shelf.holding(made.id) as held:
                with pytest.raises(StorageError):
                    [it async for it in answers.items(held, sent_of(message))]
        assert place.taken() == ["book 3C", "cancel 3C, ticket 3C"]
        async with shelf.holding(made.id) as held:
            answer = answers.items(held, sent_of(message))
            while not isinstance(await anext(answer), Turn):
                pass
            await answer.aclose()  # the caller leaves when all is done
        position = shelf.record(made.id).position
        await shelf.close()
        return position

    place.taken()
    with Toolbox(specs_of_table(table)) as box:
        assert asyncio.run(live(box)) == 1
    assert place.taken() == ["book 3C"]


def test_a_caller_throws_an_answer_away(null_runtime: Runtime) -> None:
    did: list[str] = []

    def note(seat: str | int) -> None:
        did.append(f"book {seat}")

    book = function_tool(note, undo=lambda *_: did.append("cancel"))
    with null_runtime.spawn(CALLER, tools={"book": book}) as actor:
        stream = actor.stream('=book {"seat": 1}')
        assert list(stream) == []
        for _ in range(2):
            stream.take_back()
        assert did == ["book 1", "cancel"]
        assert actor.n_messages == 1
    undo = Limits(on_failure="undo")
    with null_runtime.spawn(TWICE, tools={"book": book}, limits=undo) as actor:
        did.clear()
        stream = actor.stream("x")
        with pytest.raises(ToolNotFound):
            list(stream)
        stream.take_back()
    assert did == ["book 1A", "book 2B", "cancel", "cancel"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"mcp": "x", "undo": "cat"}, "for an MCP server a table of its tools"),
        ({"command": "cat", "undo": {"a": "b"}}, "undo is a command or MODULE:FUNCTION"),
        ({"hosts": ["x"], "undo": "cat"}, "what was fetched has no undo"),
        ({"command": "cat", "undo": "no-such-program"}, "no program no-such-program"),
        ({"function": "json:dumps", "undo": "cat"}, "is taken back by MODULE:FUNCTION"),
        ({"function": "json:dumps", "undo": "json:no"}, "json has no no"),
    ],
)
def test_what_cannot_undo(said: dict[str, Any], expected: str) -> None:
    with pytest.raises(SettingsError, match=expected):
        Toolbox({"it": spec_of("it", said)})


def test_an_undo_that_fails_is_logged(
    null_runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    limits = Limits(on_failure="undo")
    with (
        Toolbox(specs_of_table({"book": {"command": "cat", "undo": "false"}})) as box,
        null_runtime.spawn(TWICE, tools=box.tools, limits=limits) as actor,
        pytest.raises(ToolNotFound),
    ):
        actor.send("x")
    assert caplog.text.count("what the tool 'book' did could not be undone") == 2
    assert "exit status 1" in caplog.text
