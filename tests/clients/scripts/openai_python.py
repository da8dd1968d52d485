"""`openai`, the Python package: chat completions and responses."""

from __future__ import annotations

import json

from features import ANSWER, ENDLESS, MAX_TOKENS, MODEL, QUESTION, SCRIPTED, TASK, URL, WEATHER, run
from openai import OpenAI
from pydantic import BaseModel

client = OpenAI(base_url=f"{URL}/v1", api_key="x", max_retries=0)
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER_TOOL = {
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": PARAMETERS,
}
ASKED = [{"role": "user", "content": QUESTION}]


class Person(BaseModel):
    name: str
    age: int


def chat_hello() -> None:
    done = client.chat.completions.create(model=MODEL, messages=ASKED, max_completion_tokens=40)
    assert done.choices[0].message.content
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens


def chat_stream() -> None:
    asked = {"model": MODEL, "messages": ASKED, "temperature": 0, "max_completion_tokens": 40}
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(it.choices[0].delta.content or "" for it in chunks if it.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def chat_structured() -> None:
    done = client.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": "Bob is 30."}],
        response_format=Person,
        temperature=0,
        max_completion_tokens=60,
    )
    assert isinstance(done.choices[0].message.parsed, Person)


def chat_tools() -> None:
    messages = [{"role": "user", "content": TASK}]
    tools = [{"type": "function", "function": {**WEATHER_TOOL, "strict": True}}]
    cities = []
    for _ in range(3):
        done = client.chat.completions.create(model=SCRIPTED, messages=messages, tools=tools)
        message = done.choices[0].message
        messages.append(message)
        for call in message.tool_calls or ():
            city = json.loads(call.function.arguments)["city"]
            cities.append(city)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": WEATHER[city]})
    assert (cities, messages[-1].content) == (["Paris", "Rome"], ANSWER)


def chat_cancel() -> None:
    messages = [{"role": "user", "content": ENDLESS}]
    asked = {"model": SCRIPTED, "messages": messages, "max_completion_tokens": MAX_TOKENS}
    with client.chat.completions.create(**asked, stream=True) as stream:
        assert next(iter(stream)).id


def responses_hello() -> None:
    done = client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=40)
    assert done.output_text
    assert done.usage.total_tokens == done.usage.input_tokens + done.usage.output_tokens


def responses_stream() -> None:
    # An answer that is cut off ends with response.incomplete, which the client takes for none.
    asked = {"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": 1000}
    whole = client.responses.create(**asked)
    with client.responses.stream(**asked) as stream:
        text = "".join(it.delta for it in stream if it.type == "response.output_text.delta")
        assert text == whole.output_text == stream.get_final_response().output_text


def responses_structured() -> None:
    done = client.responses.parse(
        model=MODEL, input="Bob is 30.", text_format=Person, temperature=0, max_output_tokens=60
    )
    assert isinstance(done.output_parsed, Person)


def responses_tools() -> None:
    items = [{"role": "user", "content": TASK}]
    tools = [{"type": "function", "strict": True, **WEATHER_TOOL}]
    cities = []
    for _ in range(3):
        done = client.responses.create(model=SCRIPTED, input=items, tools=tools, store=False)
        items += done.output
        for call in done.output:
            if call.type == "function_call":
                city = json.loads(call.arguments)["city"]
                cities.append(city)
                result = {"type": "function_call_output", "call_id": call.call_id}
                items.append({**result, "output": WEATHER[city]})
    assert (cities, done.output_text) == (["Paris", "Rome"], ANSWER)


def responses_cancel() -> None:
    asked = {"model": SCRIPTED, "input": ENDLESS, "max_output_tokens": MAX_TOKENS}
    with client.responses.create(**asked, stream=True) as stream:
        assert any(it.type == "response.output_text.delta" for it in stream)


run(
    chat_hello,
    chat_stream,
    chat_structured,
    chat_tools,
    chat_cancel,
    responses_hello,
    responses_stream,
    responses_structured,
    responses_tools,
    responses_cancel,
)
