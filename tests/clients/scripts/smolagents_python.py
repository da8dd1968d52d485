"""`smolagents`: its agent that forces a call at every step, and its agent that writes code."""

from __future__ import annotations

from features import (
    ANSWER,
    CODE_TASK,
    ENDLESS,
    MAX_TOKENS,
    MODEL,
    QUESTION,
    SCRIPTED,
    TASK,
    URL,
    WEATHER,
    run,
)
from smolagents import ChatMessage, CodeAgent, OpenAIModel, ToolCallingAgent, tool


@tool
def weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: The city's name.
    """
    return WEATHER[city]


def model(name: str = MODEL, max_tokens: int = 60) -> OpenAIModel:
    return OpenAIModel(
        name,
        api_base=f"{URL}/v1",
        api_key="x",
        max_tokens=max_tokens,
        temperature=0,
        client_kwargs={"max_retries": 0},
    )


def asked(text: str) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=[{"type": "text", "text": text}])]


def hello() -> None:
    assert model().generate(asked(QUESTION)).content


def stream() -> None:
    parts = model().generate_stream(asked(QUESTION))
    text = "".join(it.content or "" for it in parts)
    assert text == model().generate(asked(QUESTION)).content


def structured() -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
    }
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    done = model().generate(asked("Bob is 30."), response_format=form)
    assert '"age"' in done.content


def tools() -> None:
    agent = ToolCallingAgent([weather], model(SCRIPTED), max_steps=5, verbosity_level=0)
    assert agent.run(TASK) == ANSWER
    calls = [call.arguments for step in agent.memory.steps for call in _calls(step)]
    assert calls == [{"city": "Paris"}, {"city": "Rome"}, {"answer": ANSWER}]


def code() -> None:
    agent = CodeAgent([weather], model(SCRIPTED, 200), max_steps=5, verbosity_level=0)
    assert agent.run(CODE_TASK) == ANSWER


def cancel() -> None:
    parts = model(SCRIPTED, MAX_TOKENS).generate_stream(asked(ENDLESS))
    assert next(parts)
    parts.close()


def _calls(step: object) -> list:
    return getattr(step, "tool_calls", None) or []


run(hello, stream, structured, tools, code, cancel)
