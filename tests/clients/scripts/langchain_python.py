"""`langchain-openai`: chat completions and responses."""

from __future__ import annotations

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
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


@tool
def weather(city: str) -> str:
    "The weather of a city."
    return WEATHER[city]


def model(name: str = MODEL, max_tokens: int = 60) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=f"{URL}/v1",
        api_key="x",
        model=name,
        temperature=0,
        max_tokens=max_tokens,
        max_retries=0,
        use_responses_api=ROUTE == "responses",
    )


def hello() -> None:
    done = model().invoke(QUESTION)
    assert done.text
    assert done.usage_metadata["output_tokens"] > 5


def stream() -> None:
    whole = model().invoke(QUESTION)
    assert "".join(it.text for it in model().stream(QUESTION)) == whole.text


def structured() -> None:
    asked = model().with_structured_output(Person, method="json_schema")
    assert isinstance(asked.invoke("Bob is 30."), Person)


def forced() -> None:
    asked = model().bind_tools([weather], tool_choice="weather")
    [call] = asked.invoke("Weather in Paris?").tool_calls
    assert (call["name"], set(call["args"])) == ("weather", {"city"})


def tools() -> None:
    asked, messages, cities = model(SCRIPTED).bind_tools([weather]), [HumanMessage(TASK)], []
    for _ in range(3):
        done = asked.invoke(messages)
        messages.append(done)
        for call in done.tool_calls:
            cities.append(call["args"]["city"])
            messages.append(ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"]))
    assert (cities, messages[-1].text) == (["Paris", "Rome"], ANSWER)


def cancel() -> None:
    stream = model(SCRIPTED, MAX_TOKENS).stream(ENDLESS)
    assert next(stream) is not None
    stream.close()


run(hello, stream, structured, forced, tools, cancel)
