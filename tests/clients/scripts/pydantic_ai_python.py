"""`pydantic-ai`: chat completions, responses and messages."""

from __future__ import annotations

import asyncio

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
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider


class Person(BaseModel):
    name: str
    age: int


def weather(city: str) -> str:
    "The weather of a city."
    return WEATHER[city]


def model(name: str) -> Model:
    if ROUTE == "messages":
        return AnthropicModel(name, provider=AnthropicProvider(base_url=URL, api_key="x"))
    kind = {"chat": OpenAIChatModel, "responses": OpenAIResponsesModel}[ROUTE]
    return kind(name, provider=OpenAIProvider(base_url=f"{URL}/v1", api_key="x"))


def agent(name: str = MODEL, max_tokens: int = 40, **more: object) -> Agent:
    settings = {"max_tokens": max_tokens, "temperature": 0}
    return Agent(model(name), model_settings=settings, retries=0, **more)


def hello() -> None:
    done = agent(instructions="You are brief.").run_sync(QUESTION)
    assert done.output


async def _streamed() -> None:
    async with agent().run_stream(QUESTION) as streamed:
        parts = [it async for it in streamed.stream_text(delta=True, debounce_by=None)]
        assert len(parts) > 1
        assert "".join(parts) == await streamed.get_output()


def stream() -> None:
    asyncio.run(_streamed())


def structured() -> None:
    done = agent(max_tokens=60, output_type=Person).run_sync("Bob is 30.")
    assert isinstance(done.output, Person)


def native() -> None:
    done = agent(max_tokens=60, output_type=NativeOutput(Person)).run_sync("Bob is 30.")
    assert isinstance(done.output, Person)


def tools() -> None:
    done = agent(SCRIPTED, tools=[weather]).run_sync(TASK)
    said = [part for message in done.all_messages() for part in message.parts]
    results = [it.content for it in said if it.part_kind == "tool-return"]
    assert (results, done.output) == (["sunny", "rainy"], ANSWER)


async def _cancelled() -> None:
    async with agent(SCRIPTED, MAX_TOKENS).run_stream(ENDLESS) as streamed:
        async for part in streamed.stream_text(delta=True, debounce_by=None):
            assert part
            await streamed.cancel()
            break


def cancel() -> None:
    asyncio.run(_cancelled())


run(hello, stream, structured, native, tools, cancel)
