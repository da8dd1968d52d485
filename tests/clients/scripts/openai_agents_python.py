"""`openai-agents`, with its default model API: responses."""

from __future__ import annotations

import asyncio

from agents import (
    Agent,
    ModelSettings,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from features import ANSWER, ENDLESS, MAX_TOKENS, MODEL, QUESTION, SCRIPTED, TASK, URL, WEATHER, run
from openai import AsyncOpenAI
from openai.types.responses import ResponseTextDeltaEvent
from pydantic import BaseModel

set_tracing_disabled(True)
client = AsyncOpenAI(base_url=f"{URL}/v1", api_key="x", max_retries=0)


class Person(BaseModel):
    name: str
    age: int


@function_tool
def weather(city: str) -> str:
    "The weather of a city."
    return WEATHER[city]


def agent(model: str = MODEL, max_tokens: int = 1000, **more: object) -> Agent:
    return Agent(
        name="A",
        instructions="You are brief.",
        model=OpenAIResponsesModel(model, client),
        model_settings=ModelSettings(temperature=0, max_tokens=max_tokens),
        **more,
    )


def hello() -> None:
    assert Runner.run_sync(agent(), QUESTION).final_output


async def _streamed() -> tuple[str, str]:
    running = Runner.run_streamed(agent(), QUESTION)
    text = ""
    async for event in running.stream_events():
        if event.type == "raw_response_event" and isinstance(event.data, ResponseTextDeltaEvent):
            text += event.data.delta
    return text, running.final_output


def stream() -> None:
    text, whole = asyncio.run(_streamed())
    assert text == whole != ""


def structured() -> None:
    done = Runner.run_sync(agent(output_type=Person), "Bob is 30.")
    assert isinstance(done.final_output, Person)


def tools() -> None:
    done = Runner.run_sync(agent(SCRIPTED, tools=[weather]), TASK)
    outputs = [it.output for it in done.new_items if it.type == "tool_call_output_item"]
    assert (outputs, done.final_output) == (["sunny", "rainy"], ANSWER)


async def _cancelled() -> None:
    running = Runner.run_streamed(agent(SCRIPTED, MAX_TOKENS), ENDLESS)
    async for event in running.stream_events():
        if event.type == "raw_response_event" and isinstance(event.data, ResponseTextDeltaEvent):
            running.cancel()


def cancel() -> None:
    asyncio.run(_cancelled())


run(hello, stream, structured, tools, cancel)
