"""`instructor`, which is for structured output alone: chat completions and responses."""

from __future__ import annotations

import instructor
from features import MODEL, ROUTE, URL, run
from openai import OpenAI
from pydantic import BaseModel

openai = OpenAI(base_url=f"{URL}/v1", api_key="x", max_retries=0)
MODES = {"chat": instructor.Mode.TOOLS, "responses": instructor.Mode.RESPONSES_TOOLS}
ASKED = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Bob is 30."}],
    "max_retries": 0,
    "temperature": 0,
}
LENGTH = {"chat": {"max_tokens": 80}, "responses": {"max_output_tokens": 80}}[ROUTE]


class Person(BaseModel):
    name: str
    age: int


def client(mode: instructor.Mode = MODES[ROUTE]) -> instructor.Instructor:
    return instructor.from_openai(openai, mode=mode)


def structured() -> None:
    done = client().create(response_model=Person, **ASKED, **LENGTH)
    assert isinstance(done, Person)


def chat_schema() -> None:
    done = client(instructor.Mode.JSON_SCHEMA).create(response_model=Person, **ASKED, **LENGTH)
    assert isinstance(done, Person)


def stream() -> None:
    parts = list(client().create_partial(response_model=Person, **ASKED, **LENGTH))
    assert len(parts) > 1
    assert Person.model_validate(parts[-1].model_dump())


run(structured, chat_schema, stream)
