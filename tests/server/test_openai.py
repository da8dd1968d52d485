"""The OpenAI endpoint, by OpenAI's own client, unmodified."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from isthmus import Model, Runtime
from tests.server.conftest import Serving

pytestmark = pytest.mark.model
QUESTION: list[Any] = [{"role": "user", "content": "What is an isthmus?"}]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture
def client(server: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, **how: Any) -> Any:
    given = {"model": "smollm2", "messages": QUESTION, "max_tokens": 24, "temperature": 0, **how}
    return client.chat.completions.create(**given)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["smollm2"]
    assert client.models.retrieve("smollm2").id == "smollm2"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_streamed_as_whole(client: openai.OpenAI) -> None:
    whole = ask(client)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 24
    assert whole.choices[0].message.role == "assistant"
    pieces, usage = [], None
    for chunk in ask(client, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        pieces += [choice.delta.content or "" for choice in chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len([piece for piece in pieces if piece]) > 10
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, 24)


def test_the_same_bits_whatever_was_asked_before(client: openai.OpenAI) -> None:
    """A prompt that an agent has in part gives the logprobs of one that none has."""
    long = " ".join(f"Fact {n}: the number {n} is followed by {n + 1}." for n in range(60))
    first: list[Any] = [{"role": "user", "content": f"{long} What follows 7?"}]
    more: list[Any] = [*first, {"role": "assistant", "content": "8"}, *QUESTION]
    fresh = ask(client, messages=more, logprobs=True)
    with ThreadPoolExecutor(3) as pool:  # others take the agents that have it
        list(
            pool.map(
                lambda n: ask(client, messages=[{"role": "user", "content": "x" * n}]), range(1, 9)
            )
        )
    ask(client, messages=first)
    again = ask(client, messages=more, logprobs=True)
    assert again.usage.prompt_tokens_details.cached_tokens >= 512
    assert [it.logprob for it in again.choices[0].logprobs.content] == [
        it.logprob for it in fresh.choices[0].logprobs.content
    ]


def test_all_that_come_at_once_have_what_prompts_have_in_common(client: openai.OpenAI) -> None:
    """Also while every agent that had it is busy; and it changes no bit."""
    system = {"role": "system", "content": " ".join(f"Rule {n}: be kind." for n in range(20))}

    def told(word: str) -> Any:
        question = {"role": "user", "content": f"{word}?"}
        return ask(client, messages=[system, question], logprobs=True, max_tokens=8)

    words = [f"Tell me of {what}" for what in ("cats", "rain", "tea", "sand", "iron")]
    fresh = told("Who")
    with ThreadPoolExecutor(5) as pool:
        at_once = list(pool.map(told, words))
    assert fresh.usage.prompt_tokens_details.cached_tokens < 100
    for word, answer in zip(words, at_once, strict=True):
        assert answer.usage.prompt_tokens_details.cached_tokens >= 100
        again = [it.logprob for it in told(word).choices[0].logprobs.content]
        assert [it.logprob for it in answer.choices[0].logprobs.content] == again


def test_several_at_once_are_as_alone(client: openai.OpenAI) -> None:
    alone = ask(client).choices[0].message.content
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: ask(client).choices[0].message.content, range(6)))
    assert answers == [alone] * 6


def test_choices_seeds_and_stops(client: openai.OpenAI) -> None:
    three = ask(client, n=3, temperature=1.2)
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in three.choices}) > 1
    seeded = [ask(client, temperature=1.2, seed=5).choices[0].message.content for _ in range(2)]
    assert seeded[0] == seeded[1]
    whole = ask(client).choices[0].message.content
    word = whole.split()[5]
    cut = ask(client, stop=[f" {word}"])
    assert cut.choices[0].message.content == whole[: whole.index(f" {word}")]
    assert cut.choices[0].finish_reason == "stop"
    streamed = ask(client, stop=f" {word}", stream=True, n=2)
    texts = {0: "", 1: ""}
    for chunk in streamed:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert set(texts.values()) == {cut.choices[0].message.content}


def test_logprobs(client: openai.OpenAI) -> None:
    told = ask(client, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert len(told) == 24
    for it in told:
        assert it.logprob <= 0
        assert len(it.top_logprobs) == 3
        assert it.top_logprobs[0].logprob == it.logprob  # greedy
    text = bytes(b for it in told for b in it.bytes).decode()
    assert text == ask(client).choices[0].message.content


def test_json(client: openai.OpenAI) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    messages = [{"role": "user", "content": "A person, as JSON, with name and age."}]
    made = ask(client, messages=messages, max_tokens=80, response_format=schema)
    person = json.loads(made.choices[0].message.content)
    assert set(person) == {"name", "age"}
    assert isinstance(person["age"], int)
    assert made.choices[0].finish_reason == "stop"
    anything = ask(
        client, messages=messages, max_tokens=200, response_format={"type": "json_object"}
    )
    assert isinstance(json.loads(anything.choices[0].message.content), dict)
    bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    with pytest.raises(openai.BadRequestError, match="schema"):
        ask(client, response_format=bad)


def test_what_of_a_schema_is_not_enforced(client: openai.OpenAI) -> None:
    tags = {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2}
    schema = {"type": "object", "properties": {"tags": {**tags, "uniqueItems": True}}}
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    said = "#/properties/tags: uniqueItems is not enforced"
    raw = client.chat.completions.with_raw_response.create(
        model="smollm2", messages=QUESTION, response_format=form, max_tokens=2
    )
    assert raw.headers["x-isthmus-warning"] == said
    assert raw.parse().warnings == [said]
    form["json_schema"]["strict"] = True
    with pytest.raises(openai.BadRequestError, match=said):
        ask(client, response_format=form)
    tool: Any = {"name": "f", "parameters": schema}
    tools: Any = [{"type": "function", "function": tool}]
    told = ask(client, tools=tools, tool_choice="required", max_tokens=2)
    assert told.warnings[-1] == f"tool f: {said}"
    tool["strict"] = True
    with pytest.raises(openai.BadRequestError, match=said):
        ask(client, tools=tools, tool_choice="required")


def test_tools(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        called = ask(
            client, messages=messages, max_tokens=80, tools=[WEATHER], tool_choice=choice
        ).choices[0]
        assert called.finish_reason == "tool_calls"
        [call] = called.message.tool_calls
        assert call.function.name == "weather"
        assert set(json.loads(call.function.arguments)) == {"city"}
    streamed = ask(
        client,
        messages=messages,
        max_tokens=80,
        tools=[WEATHER],
        tool_choice="required",
        stream=True,
    )
    calls = [it for chunk in streamed for c in chunk.choices for it in c.delta.tool_calls or ()]
    assert [it.function.name for it in calls if it.id] == ["weather"]
    assert {it.index for it in calls} == {0}
    assert set(json.loads("".join(it.function.arguments or "" for it in calls))) == {"city"}
    assert len(calls) > 3  # arguments come as they are made
    followed: list[Any] = [
        *messages,
        {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    assert ask(client, messages=followed, tools=[WEATHER]).choices[0].message.content is not None
    with pytest.raises(openai.BadRequestError, match="tool_choice"):
        ask(client, tool_choice="required")


def test_completions(client: openai.OpenAI) -> None:
    made = client.completions.create(
        model="smollm2", prompt="The capital of France is", max_tokens=8, temperature=0, logprobs=1
    )
    assert "Paris" in made.choices[0].text
    assert len(made.choices[0].logprobs.tokens) == 8  # type: ignore[union-attr, arg-type]
    several = client.completions.create(
        model="smollm2", prompt=["One, two,", "A, B,"], max_tokens=4, temperature=0
    )
    assert [choice.index for choice in several.choices] == [0, 1]
    stream = client.completions.create(
        model="smollm2", prompt="The capital of France is", max_tokens=8, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == made.choices[0].text


def test_what_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="this server has smollm2"):
        ask(client, model="gpt-7")
    with pytest.raises(openai.BadRequestError, match=r"8192|4096") as error:
        ask(client, messages=[{"role": "user", "content": "word " * 9000}])
    assert error.value.code == "context_length_exceeded"
    for wrong in (
        {"messages": []},
        {"temperature": -1},
        {"max_tokens": 0},
        {"n": 129},
        {"messages": [{"role": "user", "content": 5}]},
        {"stop": ["a"] * 17},
        {"seed": 2**70},
    ):
        with pytest.raises(openai.BadRequestError):
            ask(client, **wrong)
    with pytest.raises(openai.BadRequestError, match="no embeddings"):
        client.embeddings.create(model="smollm2", input="x")
    with pytest.raises(openai.APIError, match="nothing at"):
        client.files.list()


def test_a_caller_who_leaves_frees_his_place(client: openai.OpenAI, server: Serving) -> None:
    stream = ask(client, stream=True, max_tokens=2000)
    next(iter(stream))
    stream.close()
    assert ask(client).choices[0].message.content
    for _ in range(100):
        if "isthmus_actors_running 0.0" in server.client.get("/metrics").text:
            return
    pytest.fail("the agent still runs")


def test_curl(server: Serving) -> None:
    body = json.dumps({"model": "smollm2", "messages": QUESTION, "max_tokens": 5})
    done = subprocess.run(
        ["curl", "-sS", f"{server.url}/v1/chat/completions", "-d", body],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["usage"]["completion_tokens"] == 5


def test_biases_and_going_on_behind_the_end(client: openai.OpenAI, smollm2: Path) -> None:
    with Runtime(device="cpu") as runtime:
        check_biases(client, runtime.load_model(smollm2))


def check_biases(client: openai.OpenAI, model: Model) -> None:
    token = model.tokenizer.encode(" banana")[0]
    body = {"logit_bias": {str(token): 100}, "max_tokens": 3}
    said = ask(client, **body).choices[0].message.content
    assert said == model.tokenizer.decode([token] * 3).decode()
    eos = {"logit_bias": {str(model.tokenizer.eos): 100}, "max_tokens": 4}
    assert ask(client, **eos).usage.completion_tokens == 0
    assert ask(client, **eos, extra_body={"ignore_eos": True}).usage.completion_tokens == 4
    for bad in ({"-1": 1}, {"x": 1}, {str(model.n_vocab): 1}, {"5": 101}):
        with pytest.raises(openai.BadRequestError):
            ask(client, logit_bias=bad)


def test_text_streams_at_once_where_tools_are_given(client: openai.OpenAI) -> None:
    streamed = ask(client, tools=[WEATHER], stream=True, max_tokens=12)
    pieces = [it.delta.content for chunk in streamed for it in chunk.choices if it.delta.content]
    assert len(pieces) > 4
    whole = ask(client, tools=[WEATHER], max_tokens=12).choices[0].message
    assert "".join(pieces) == whole.content
    assert whole.tool_calls is None


def test_choices_of_one_seed_differ(client: openai.OpenAI) -> None:
    made = [ask(client, n=3, seed=5, temperature=1.5, max_tokens=12).choices for _ in range(2)]
    texts = [[choice.message.content for choice in choices] for choices in made]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 3
