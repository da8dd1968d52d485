"""`anthropic`, the Python package: messages."""

from __future__ import annotations

from anthropic import Anthropic
from features import ANSWER, ENDLESS, MAX_TOKENS, MODEL, QUESTION, SCRIPTED, TASK, URL, WEATHER, run
from pydantic import BaseModel

client = Anthropic(base_url=URL, api_key="x", max_retries=0)
ASKED = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 40}
WEATHER_TOOL = {
    "name": "weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}


class Person(BaseModel):
    name: str
    age: int


def hello() -> None:
    done = client.messages.create(**ASKED, system="You are brief.")
    assert done.content[0].text
    counted = client.messages.count_tokens(
        model=MODEL, messages=ASKED["messages"], system="You are brief."
    )
    cached = done.usage.cache_read_input_tokens or 0
    written = done.usage.cache_creation_input_tokens or 0
    assert counted.input_tokens == done.usage.input_tokens + cached + written


def stream() -> None:
    whole = client.messages.create(**ASKED, extra_body={"temperature": 0})
    with client.messages.stream(**ASKED, extra_body={"temperature": 0}) as streamed:
        assert "".join(streamed.text_stream) == whole.content[0].text
        last = streamed.get_final_message()
    assert last.usage.output_tokens == whole.usage.output_tokens
    assert last.stop_reason == whole.stop_reason


def structured() -> None:
    done = client.messages.parse(
        model=MODEL,
        max_tokens=60,
        messages=[{"role": "user", "content": "Bob is 30."}],
        output_format=Person,
        extra_body={"temperature": 0},
    )
    assert isinstance(done.parsed_output, Person)


def tools() -> None:
    messages, cities = [{"role": "user", "content": TASK}], []
    for _ in range(3):
        done = client.messages.create(
            model=SCRIPTED, max_tokens=100, messages=messages, tools=[WEATHER_TOOL]
        )
        calls = [it for it in done.content if it.type == "tool_use"]
        cities += [it.input["city"] for it in calls]
        results = [
            {"type": "tool_result", "tool_use_id": it.id, "content": WEATHER[it.input["city"]]}
            for it in calls
        ]
        assert done.stop_reason == ("tool_use" if calls else "end_turn")
        messages += [{"role": "assistant", "content": done.content}]
        messages += [{"role": "user", "content": results}] if results else []
    assert (cities, done.content[0].text) == (["Paris", "Rome"], ANSWER)


def cancel() -> None:
    messages = [{"role": "user", "content": ENDLESS}]
    asked = {"model": SCRIPTED, "messages": messages, "max_tokens": MAX_TOKENS}
    with client.messages.create(**asked, stream=True) as parts:
        assert any(it.type == "content_block_delta" for it in parts)


run(hello, stream, structured, tools, cancel)
