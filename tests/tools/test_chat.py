"""The bundled `chat` with tools: the model asks, the tool answers, the model goes on."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from isthmus import Actor, Limits, Model, Runtime
from isthmus.errors import Cancelled, ContextFull, GuestFailed
from isthmus.tools import CommandTool, Tool, function_tool
from isthmus.tools.command import program_of
from tests.tiny_gguf import TinyLlama
from tests.tools.plays import scripted

FORMS = Path(__file__).parents[1] / "templates" / "forms"
TEMPLATES = ("qwen3_coder", "llama31", "mistral_v3", "lfm2")
ARGS = {"n_ctx": 4096, "temperature": 0}
ROME = "How is the weather in Rome?"
SAID = "Let me look.\nIt is noon, and sunny."


def weather(city: str) -> str:
    """The weather of a city."""
    if city == "Atlantis":
        raise LookupError("it sank")
    return "sunny"


CLOCK = CommandTool(
    program=program_of([sys.executable, "-c", "print('noon')"]), description="The time."
)
TOOLS: dict[str, Tool | Callable[..., object]] = {"weather": weather, "clock": CLOCK}


@pytest.fixture(scope="module")
def shared() -> Iterator[Runtime]:
    with Runtime(device="cpu", threads=2) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def model(shared: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return shared.load_model(scripted(tmp_path_factory.mktemp("scripted")))


def chat(shared: Runtime, model: Model, guest: str = "chat", **more: Any) -> Actor:
    args = {**ARGS, **more.pop("args", {})}
    given = {"tools": TOOLS, **more}
    return shared.spawn(guest, models={"default": model}, args=args, **given)


def names(actor: Actor, message: str) -> list[str]:
    return [it.name for it in actor.send(message).tool_calls]


# ---------------------------------------------------------------------------------- the loop


@pytest.mark.parametrize("guest", ["chat", "chat64"])
def test_the_model_asks_the_tools_answer_and_the_model_goes_on(
    shared: Runtime, model: Model, guest: str
) -> None:
    actor = chat(shared, model, guest, args={"system": 'You are "brief".\n'})
    stream = actor.stream(ROME)
    pieces = list(stream)
    assert "".join(pieces) == stream.reply.text == SAID
    assert [(it.name, it.error) for it in stream.reply.tool_calls] == [
        ("weather", ""),
        ("clock", ""),
    ]
    assert actor.send("Thank you.").tool_calls == ()


def test_a_failure_is_told_to_the_model_which_goes_on(shared: Runtime, model: Model) -> None:
    reply = chat(shared, model).send("How is the weather in Atlantis?")
    assert reply.text == "I do not know."
    assert [it.error for it in reply.tool_calls] == ["LookupError: it sank"]


def test_calls_of_tools_that_there_are_not_are_text(shared: Runtime, model: Model) -> None:
    actor = chat(shared, model, tools={"clock": CLOCK})
    reply = actor.send(ROME)
    assert '{"name": "weather"' in reply.text
    assert reply.tool_calls == ()


def test_a_model_that_never_stops_is_told_of_no_tools_at_last(
    shared: Runtime, model: Model
) -> None:
    actor = chat(shared, model, args={"tool_rounds": 3})
    reply = actor.send("Go on for ever.")
    assert len(reply.tool_calls) == 3
    assert "<tool_call>" in reply.text  # what it says then is text


def test_a_call_can_be_wanted_of_any_model(shared: Runtime, tiny: Path) -> None:
    """A random model calls a tool if a grammar has it do so."""
    asked: list[str] = []

    def choose(city: Literal["Oslo", "Rome"]) -> str:
        asked.append(city)
        return city

    random = shared.load_model(tiny)
    args = {"n_ctx": 1024, "max_tokens": 64, "tools": "required"}
    actor = chat(shared, random, tools={"choose": choose}, args=args)
    for n in range(1, 4):
        assert names(actor, "x") == ["choose"]
        assert len(asked) == n
        assert asked[-1] in ("Oslo", "Rome")


@pytest.mark.parametrize("template", TEMPLATES)
def test_each_model_calls_in_its_own_form(
    shared: Runtime, tmp_path: Path, template: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = (FORMS / f"{template}.jinja").read_text()
    path = TinyLlama(with_tokenizer=True, chat_template=source, n_ctx=8192).write(tmp_path / "it")
    asked: list[str] = []

    def choose(city: Literal["Oslo", "Rome"]) -> str:
        asked.append(city)
        return city

    random = shared.load_model(path)
    args = {"n_ctx": 8192, "max_tokens": 120, "tools": "required", "tool_rounds": 1}
    actor = chat(shared, random, tools={"choose": choose}, args=args, seed=1)
    assert "choose" in names(actor, "x")
    assert set(asked) <= {"Oslo", "Rome"}
    assert "leaves out tools" not in caplog.text
    text = random.tokenizer.decode(actor.sessions[0].tokens).decode(errors="replace")
    assert asked[0] in text  # the model goes on with what the tool says


def test_tools_may_be_left_out(shared: Runtime, model: Model) -> None:
    reply = chat(shared, model, args={"tools": "none"}).send(ROME)
    assert reply.tool_calls == ()
    assert "tool_call" in reply.text


def test_of_a_long_result_the_model_gets_the_beginning(shared: Runtime, model: Model) -> None:
    tools = {**TOOLS, "weather": lambda city: "sunny " + "ö" * 5000}
    actor = chat(shared, model, tools=tools, args={"tool_nbytes": 99})
    reply = actor.send(ROME)
    assert reply.tool_calls[0].nbytes == 6 + 2 * 5000
    assert reply.text == SAID
    [session] = actor.sessions
    text = model.tokenizer.decode(session.tokens).decode()
    assert "sunny " + "ö" * 46 + " ... and 9908 bytes more" in text


# ---------------------------------------------------------------------------------- its life


def test_forks_and_restored_agents_see_what_was_done(
    shared: Runtime, model: Model, tmp_path: Path
) -> None:
    n: list[str] = []

    def counted(city: str) -> str:
        n.append(city)
        return "sunny"

    tools = {**TOOLS, "weather": counted}
    actor = chat(shared, model, tools=tools)
    actor.send(ROME)
    actor.snapshot(tmp_path / "it")
    [fork] = actor.fork()
    again = shared.restore(tmp_path / "it", models={"default": model}, tools=tools)
    for it in (actor, fork, again):
        assert it.send("And now?").text == "It is noon, and sunny."
    assert n == ["Rome"]
    assert {it.sessions[0].n_tokens for it in (actor, fork, again)} == {actor.sessions[0].n_tokens}


def test_another_model_goes_on_with_the_conversation(
    shared: Runtime, model: Model, tmp_path: Path
) -> None:
    actor = chat(shared, model, args={"max_tokens": 8})
    assert actor.send(ROME).text == SAID
    actor.snapshot(tmp_path / "it")
    path = TinyLlama(with_tokenizer=True, n_ctx=4096).write(tmp_path / "other.gguf")
    models = {"default": shared.load_model(path)}
    again = shared.restore(tmp_path / "it", models=models, tools=TOOLS, require="replayed")
    assert again.send("And now?").n_tokens > 8
    text = models["default"].tokenizer.decode(again.sessions[0].tokens).decode(errors="replace")
    assert "It is noon, and sunny." in text
    assert "And now?" in text


def test_an_undone_message_is_forgotten_and_taken_back_once(shared: Runtime, model: Model) -> None:
    did: list[str] = []

    def pay(sum: str) -> str:  # noqa: A002 - the model calls it so
        did.append(f"pay {sum}")
        return "paid"

    def ship(to: str) -> str:
        did.append(f"ship {to}")
        return "shipped" + " and more" * length

    def repay(_: bytes, result: bytes) -> None:
        did.append(f"repay {result.decode()}")

    tools: dict[str, Tool] = {"pay": function_tool(pay, undo=repay), "ship": function_tool(ship)}
    undo, length = Limits(on_failure="undo"), 100
    actor = chat(shared, model, tools=tools, limits=undo, args={"n_ctx": 512})
    for _ in range(2):
        did.clear()
        with pytest.raises(ContextFull):  # by what `ship` says
            actor.send("Please pay for it.")
        assert did == ["pay 10", "ship Rome", "repay paid"]
        assert actor.n_messages == 0
    length = 0
    did.clear()
    assert actor.send("Please pay for it.").text == "It is on its way."
    assert did == ["pay 10", "ship Rome"]


def test_a_message_that_is_stopped_in_a_tool_leaves_the_conversation_as_it_was(
    shared: Runtime, model: Model
) -> None:
    inside, free = threading.Event(), threading.Event()

    def slow(city: str) -> str:
        inside.set()
        free.wait(60)
        return "sunny"

    actor = chat(shared, model, tools={**TOOLS, "weather": slow})
    stream = actor.stream(ROME)
    assert inside.wait(60)
    actor.stop()
    with pytest.raises(Cancelled):
        list(stream)
    free.set()
    assert actor.state == "idle"
    assert actor.send(ROME).text == SAID


def test_a_conversation_that_grows_too_long_is_taken_back(shared: Runtime, model: Model) -> None:
    tools: dict[str, Any] = {**TOOLS, "clock": lambda zone: "late " * 1000}
    actor = chat(shared, model, tools=tools, args={"n_ctx": 512})
    with pytest.raises(ContextFull):
        actor.send(ROME)
    assert actor.send("Hello").tool_calls == ()


# ---------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"tools": "maybe"}, "tools is 'maybe': give auto, none or required"),
        ({"tool_rounds": 0}, "tool_rounds is '0': give a whole number from 1"),
        ({"tool_nbytes": "many"}, "tool_nbytes is 'many'"),
    ],
)
def test_options(shared: Runtime, model: Model, args: dict[str, Any], said: str) -> None:
    with pytest.raises(GuestFailed, match=said):
        chat(shared, model, args=args).send("x")


def test_required_without_a_tool(shared: Runtime, model: Model) -> None:
    with pytest.raises(GuestFailed, match="give the agent a tool, or auto"):
        chat(shared, model, tools={}, args={"tools": "required"}).send("x")


def test_tools_of_the_neighbours_are_not_there(shared: Runtime, model: Model) -> None:
    """Two agents of one model have each its own."""
    one, two = chat(shared, model), chat(shared, model, tools={})
    assert one.send(ROME).tool_calls
    assert not two.send(ROME).tool_calls
