"""The scripted model by itself: clients can be blamed only if it does what its plays say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.plays import ANSWER, plays
from tests.clients.scripted import Play, ScriptedModel, Step
from tests.server.conftest import Serving

pytestmark = pytest.mark.slow
TASK = {"role": "user", "content": "How is the weather in Paris and in Rome?"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("scripted")
    model = ScriptedModel(plays()).write(folder / "scripted.gguf")
    serving = Serving(folder / "data", "--model", f"scripted={model}")
    yield serving
    assert serving.stop() == 0


def chat(server: Serving, messages: list[dict], **more: object) -> dict[str, Any]:
    """The answer's message."""
    asked = {"model": "scripted", "messages": messages, **more}
    return server.post("/v1/chat/completions", asked)["choices"][0]["message"]


def tool(name: str, argument: str) -> dict[str, Any]:
    """A function of one text."""
    properties = {argument: {"type": "string"}}
    parameters = {"type": "object", "properties": properties, "required": [argument]}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_call_follows_each_result(server: Serving, choice: str) -> None:
    tools = [tool("weather", "city"), tool("final_answer", "answer")]
    messages, arguments = [TASK], []
    for result in ("sunny", "rainy"):
        message = chat(server, messages, tools=tools, tool_choice=choice)
        [call] = message["tool_calls"]
        assert call["function"]["name"] == "weather"
        arguments.append(json.loads(call["function"]["arguments"]))
        messages += [message, {"role": "tool", "tool_call_id": call["id"], "content": result}]
    assert arguments == [{"city": "Paris"}, {"city": "Rome"}]
    last = chat(server, messages, tools=tools, tool_choice=choice)
    if choice == "auto":
        assert last["content"] == ANSWER
    else:
        [call] = last["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == {"answer": ANSWER}


def test_a_result_that_is_lost_is_asked_for_again(server: Serving) -> None:
    messages = [TASK, {"role": "tool", "content": "rainy"}]
    [call] = chat(server, messages, tools=[tool("weather", "city")])["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}


def test_what_the_model_said_is_no_result(server: Serving) -> None:
    messages = [TASK, {"role": "assistant", "content": "sunny, rainy"}]
    [call] = chat(server, messages, tools=[tool("weather", "city")])["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}


def test_an_endless_answer_has_all_tokens_that_it_may_have(server: Serving) -> None:
    asked = {"model": "scripted", "messages": [{"role": "user", "content": "Count forever."}]}
    usage = server.post("/v1/chat/completions", {**asked, "max_tokens": 300})["usage"]
    assert usage["completion_tokens"] == 300


def test_an_unknown_task_gets_an_empty_answer(server: Serving) -> None:
    assert chat(server, [{"role": "user", "content": "Sing."}])["content"] == ""


def test_more_steps_than_states_are_refused(tmp_path: Path) -> None:
    many = tuple(Step((str(at),), str(at)) for at in range(63))
    with pytest.raises(AssertionError, match="too many steps"):
        ScriptedModel((Play("many", many),)).write(tmp_path / "many.gguf")
