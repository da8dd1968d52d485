"""`litellm`: `openai` (chat), `responses`, `anthropic` (messages) and `ollama_chat`."""

from __future__ import annotations

import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # the table of prices is not fetched

import litellm
from features import (
    ANSWER,
    ENDLESS,
    MAX_TOKENS,
    MODEL,
    QUESTION,
    ROUTE,
    SCRIPTED,
    TASK,
    URL,
    WEATHER,
    run,
)
from pydantic import BaseModel

PREFIX = {"chat": "openai/", "messages": "anthropic/", "ollama": "ollama_chat/"}
BASE = {"chat": f"{URL}/v1"}
MORE = {
    "api_base": BASE.get(ROUTE, URL),
    "api_key": "x",
    "num_retries": 0,
    "max_retries": 0,
}
WEATHER_TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


class Person(BaseModel):
    name: str
    age: int


def asked(text: str, model: str = MODEL, max_tokens: int = 40) -> dict[str, object]:
    return {
        "model": f"{PREFIX[ROUTE]}{model}",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": max_tokens,
        **MORE,
    }


def hello() -> None:
    done = litellm.completion(**asked(QUESTION))
    assert done.choices[0].message.content
    assert done.usage.completion_tokens > 0


def stream() -> None:
    whole = litellm.completion(**asked(QUESTION), temperature=0)
    chunks = litellm.completion(**asked(QUESTION), temperature=0, stream=True)
    text = "".join(it.choices[0].delta.content or "" for it in chunks)
    assert text == whole.choices[0].message.content


def structured() -> None:
    request = {**asked("Bob is 30.", max_tokens=60), "temperature": 0}
    done = litellm.completion(**request, response_format=Person)
    assert Person.model_validate_json(done.choices[0].message.content)


def tools() -> None:
    request = {**asked(TASK, SCRIPTED, 100), "tools": [WEATHER_TOOL]}
    messages, cities = request["messages"], []
    for _ in range(3):
        message = litellm.completion(**request).choices[0].message
        messages.append(message.model_dump())
        for call in message.tool_calls or ():
            city = json.loads(call.function.arguments)["city"]
            cities.append(city)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": WEATHER[city]})
    assert (cities, messages[-1]["content"]) == (["Paris", "Rome"], ANSWER)


def cancel() -> None:
    chunks = litellm.completion(**asked(ENDLESS, SCRIPTED, MAX_TOKENS), stream=True)
    assert next(iter(chunks)).choices
    print("good", flush=True)
    os._exit(0)  # leaves as a killed client does: a stream of litellm cannot be closed


def responses_hello() -> None:
    done = litellm.responses(model=f"openai/{MODEL}", input=QUESTION, **RESPONSES)
    assert done.output_text


def responses_stream() -> None:
    asked = {"model": f"openai/{MODEL}", "input": QUESTION, "temperature": 0, **RESPONSES}
    events = litellm.responses(**asked, stream=True)
    text = "".join(it.delta for it in events if it.type == "response.output_text.delta")
    assert text == litellm.responses(**asked).output_text != ""


RESPONSES = {"api_base": f"{URL}/v1", "api_key": "x", "max_output_tokens": 40}
run(hello, stream, structured, tools, cancel, responses_hello, responses_stream)
