"""Anthropic's Messages API over HTTP: answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from isthmus.server.anthropic.signature import signature_of, thought_of
from tests import tiny_gguf
from tests.server.conftest import Serving
from tests.server.messages import (
    BILLING,
    CITY,
    PATH,
    QUESTION,
    WEATHER,
    ask,
    count,
    error_of,
    events_of,
    post,
    text_of,
)
from tests.server.test_messages_blocks import content_of

# ------------------------------------------------------------------ answers


@pytest.mark.model
def test_it_says_what_the_other_api_says(server: Serving) -> None:
    chat = {"model": "smollm2", "messages": QUESTION, "max_tokens": 16, "temperature": 0}
    other = server.post("/v1/chat/completions", chat)
    told = ask(server)
    assert text_of(told) == other["choices"][0]["message"]["content"]
    usage = told["usage"]
    assert told["stop_reason"] == "max_tokens"
    assert usage["output_tokens"] == 16
    assert usage["cache_creation_input_tokens"] == 0
    n_in = usage["input_tokens"] + usage["cache_read_input_tokens"]
    assert n_in == other["usage"]["prompt_tokens"] == count(server)


@pytest.mark.model
def test_streamed_as_whole(server: Serving) -> None:
    whole = ask(server, max_tokens=40)
    events = events_of(post(server, max_tokens=40, stream=True))
    assert [it["type"] for it in events[:3]] == ["message_start", "ping", "content_block_start"]
    deltas = [it for it in events if it["type"] == "content_block_delta"]
    assert len(deltas) > 20
    assert content_of(events[2:-2]) == whole["content"]
    assert events[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert events[-1] == {"type": "message_stop"}
    total = [
        it["input_tokens"] + it["cache_read_input_tokens"]
        for it in (events[0]["message"]["usage"], events[-2]["usage"], whole["usage"])
    ]
    assert total == [total[0]] * 3


@pytest.mark.model
def test_stop_sequences(server: Serving) -> None:
    whole = text_of(ask(server, max_tokens=40))
    word = f" {whole.split()[4]}"
    told = ask(server, max_tokens=40, stop_sequences=["nowhere in it", word])
    assert (told["stop_reason"], told["stop_sequence"]) == ("stop_sequence", word)
    assert text_of(told) == whole[: whole.index(word)]


@pytest.mark.model
def test_an_answer_that_is_begun_goes_on(server: Serving) -> None:
    whole = text_of(ask(server, max_tokens=24))
    words = whole.split(" ")
    for n_words in (1, 3, 6):
        begun = " ".join(words[:n_words])
        messages = [*QUESTION, {"role": "assistant", "content": begun}]
        told = ask(server, messages=messages, max_tokens=24)
        n_more = min(len(whole), len(begun + text_of(told)))
        assert (begun + text_of(told))[:n_more] == whole[:n_more]
        n_in = told["usage"]["input_tokens"] + told["usage"]["cache_read_input_tokens"]
        assert n_in == count(server, messages=messages) > count(server)


@pytest.mark.model
def test_tools_that_must_be_called(server: Serving) -> None:
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    several = {"tools": [WEATHER], "tool_choice": {"type": "any"}, "max_tokens": 90}
    for call in ask(server, messages=messages, **several)["content"]:
        assert (call["type"], call["name"]) == ("tool_use", "weather")
    for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
        choice["disable_parallel_tool_use"] = True
        how: Any = {
            "messages": messages,
            "tools": [WEATHER],
            "tool_choice": choice,
            "max_tokens": 90,
        }
        told = ask(server, **how)
        [call] = told["content"]
        assert told["stop_reason"] == "tool_use"
        assert (call["type"], call["name"], call["input"].keys()) == (
            "tool_use",
            "weather",
            {"city"},
        )
        events = events_of(post(server, stream=True, **how))
        [streamed] = content_of(events[2:-2])
        assert {**streamed, "id": call["id"]} == call
        assert events[-2]["delta"]["stop_reason"] == "tool_use"
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "sunny"}
    followed = [
        *messages,
        {"role": "assistant", "content": told["content"]},
        {"role": "user", "content": [result]},
    ]
    assert text_of(ask(server, messages=followed, tools=[WEATHER]))


@pytest.mark.model
def test_an_answer_that_follows_a_schema(server: Serving) -> None:
    told = ask(
        server, max_tokens=60, output_config={"format": {"type": "json_schema", "schema": CITY}}
    )
    assert json.loads(text_of(told)).keys() == {"city"}
    assert told["stop_reason"] == "end_turn"


@pytest.mark.model
def test_a_changing_checksum_ends_no_beginning(server: Serving) -> None:
    rules = " ".join(f"Rule {n}: be kind." for n in range(40))
    for n, checksum in enumerate(("1c0", "fd3")):
        system = [
            {"type": "text", "text": BILLING.format(checksum)},
            {"type": "text", "text": rules},
        ]
        usage = ask(server, system=system, max_tokens=2)["usage"]
        assert (usage["cache_read_input_tokens"] > 200) is (n == 1)


def test_a_full_context_is_no_limit_of_the_request(tiny_server: Serving) -> None:
    told = ask(tiny_server, max_tokens=32_000, ignore_eos=True)
    assert told["stop_reason"] == "model_context_window_exceeded"
    assert 512 < told["usage"]["output_tokens"] < 1024
    short, long = (
        error_of(post(tiny_server, messages=[{"role": "user", "content": "x" * n}]))
        for n in (2_000, 3_000_000)
    )
    assert "the prompt has 20" in short
    assert "the prompt has 30" not in long, "it was tokenized to its end"
    assert "context" in long


# ------------------------------------------------------------------ thoughts

THINKS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n"
    "{% if enable_thinking is defined and not enable_thinking %}\n</think>\n\n{% endif %}"
    "{% endif %}"
)


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A model that begins with a thought unless it is told not to."""
    folder = tmp_path_factory.mktemp("thinker")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_gguf, "CHATML", THINKS)
        tiny_gguf.TinyLlama(with_tokenizer=True).write(folder / "tiny.gguf")
    serving = Serving(folder / "data", "--model", f"tiny={folder}/tiny.gguf", "--n-ctx", "512")
    yield serving
    assert serving.stop() == 0


def test_thoughts(thinker: Serving) -> None:
    how: dict[str, Any] = {"max_tokens": 60, "ignore_eos": True}
    enabled = {"type": "enabled", "budget_tokens": 10}
    told = ask(thinker, thinking=enabled, **how)
    thought, said = told["content"]
    assert (thought["type"], said["type"]) == ("thinking", "text")
    assert thought["signature"] == signature_of(thought["thinking"], hidden=False)
    assert 10 <= told["usage"]["output_tokens_details"]["thinking_tokens"] < 30
    events = events_of(post(thinker, thinking=enabled, stream=True, **how))
    assert content_of(events[2:-2]) == told["content"]

    hidden = ask(thinker, thinking={**enabled, "display": "omitted"}, **how)
    assert hidden["content"][0]["thinking"] == ""
    assert thought_of("", hidden["content"][0]["signature"]) == thought["thinking"]
    assert hidden["content"][1] == said

    none = ask(thinker, thinking={"type": "disabled"}, **how)
    assert [it["type"] for it in none["content"]] == ["text"]
    assert none["usage"]["output_tokens_details"]["thinking_tokens"] == 0

    unending = ask(thinker, max_tokens=20, ignore_eos=True)
    assert [it["type"] for it in unending["content"]] == ["thinking"]
    assert unending["stop_reason"] == "max_tokens"


def test_thoughts_come_back(thinker: Serving) -> None:
    told = ask(
        thinker, thinking={"type": "enabled", "budget_tokens": 5}, ignore_eos=True, max_tokens=40
    )
    answered = {"role": "assistant", "content": told["content"]}
    ask(thinker, messages=[*QUESTION, answered, *QUESTION], max_tokens=2)
    told["content"][0]["thinking"] += "!"
    changed = post(thinker, messages=[*QUESTION, answered, *QUESTION])
    assert changed.status_code == 400
    assert "messages.1.content.0: the thinking is not what was signed" in error_of(changed)


def test_no_answer_is_begun_inside_a_thought(thinker: Serving) -> None:
    messages = [*QUESTION, {"role": "assistant", "content": "It is"}]
    refused = post(thinker, messages=messages)
    assert refused.status_code == 400
    assert "this model thinks before it answers" in error_of(refused)
    text_of(ask(thinker, messages=messages, thinking={"type": "disabled"}, ignore_eos=True))


# ------------------------------------------------------------------ callers


@pytest.mark.model
def test_a_caller_who_leaves_ends_the_request(server: Serving) -> None:
    body = {"model": "smollm2", "messages": QUESTION, "max_tokens": 3000, "ignore_eos": True}
    with server.client.stream("POST", PATH, json={**body, "stream": True}) as answer:
        assert answer.status_code == 200
        pieces = answer.iter_bytes()  # one that nobody holds any more closes the answer
        next(pieces)
        assert "isthmus_actors_running 1.0" in server.client.get("/metrics").text
    for _ in range(100):
        if "isthmus_actors_running 0.0" in server.client.get("/metrics").text:
            return
    pytest.fail("the agent still runs")
