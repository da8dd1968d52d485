"""Ollama's API: what its clients send, and what they are told."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from isthmus.abi import GrammarKind
from isthmus.model.forms import Arguments, CallBegins, CallEnds, Reasoning, Text
from isthmus.server.ollama.answer import Reading
from isthmus.server.ollama.requests import (
    Call,
    CalledFunction,
    ChatMessage,
    ChatRequest,
    GenerateRequest,
    Options,
)
from isthmus.server.ollama.translate import chat_wanted, generate_wanted
from tests.server.conftest import Serving

HELLO = [{"role": "user", "content": "hello"}]
COUNTS = ("prompt_eval_count", "eval_count", "total_duration", "eval_duration")


def chat(server: Serving, **more: Any) -> Any:
    body = {"model": "tiny", "messages": HELLO, "options": {"num_predict": 8, "seed": 1}, **more}
    return server.client.post("/api/chat", json=body)


def lines(answer: Any) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    return [json.loads(line) for line in answer.text.splitlines()]


def test_a_stream_is_the_whole_in_lines(tiny_server: Serving) -> None:
    *pieces, last = lines(chat(tiny_server))
    assert all(it["done"] is False and it["model"] == "tiny" for it in pieces)
    assert last["done"] is True
    assert last["done_reason"] in ("stop", "length")
    assert all(last[name] > 0 for name in COUNTS)
    whole = chat(tiny_server, stream=False).json()
    assert whole["message"]["content"] == "".join(it["message"]["content"] for it in pieces)
    assert whole["message"]["role"] == "assistant"
    assert whole["eval_count"] == last["eval_count"]


def test_a_model_has_a_tag_for_clients_that_want_one(tiny_server: Serving) -> None:
    assert chat(tiny_server, model="tiny:latest", stream=False).status_code == 200
    missing = chat(tiny_server, model="large:latest")
    assert missing.status_code == 404
    assert "there is no model" in missing.json()["error"]


def test_what_follows_a_schema(tiny_server: Serving) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"],
              "additionalProperties": False}  # fmt: skip
    options = {"num_predict": 200, "seed": 1}
    whole = chat(tiny_server, format=schema, options=options, stream=False).json()
    assert json.loads(whole["message"]["content"])["n"] in (1, 2)
    assert chat(tiny_server, format={"type": "nonsense"}).status_code == 400


def test_a_prompt(tiny_server: Serving) -> None:
    body = {"model": "tiny", "prompt": "hello", "options": {"num_predict": 8, "seed": 1}}
    *pieces, last = lines(tiny_server.client.post("/api/generate", json=body))
    assert last["done"]
    whole = tiny_server.client.post("/api/generate", json=body | {"stream": False}).json()
    assert whole["response"] == "".join(it["response"] for it in pieces)
    as_chat = chat(tiny_server, stream=False).json()
    assert whole["response"] == as_chat["message"]["content"]
    raw = tiny_server.client.post("/api/generate", json=body | {"raw": True, "stream": False})
    assert raw.json()["prompt_eval_count"] < as_chat["prompt_eval_count"]


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_a_model_is_there_if_nothing_is_asked_of_it(tiny_server: Serving, path: str) -> None:
    told = tiny_server.client.post(path, json={"model": "tiny"}).json()
    assert (told["done"], told["done_reason"]) == (True, "load")


def test_models(tiny_server: Serving) -> None:
    [model] = tiny_server.get("/api/tags")["models"]
    assert model["name"] == model["model"] == "tiny"
    assert model["size"] > 0
    assert model["details"]["quantization_level"] == "Q8_0"
    shown = tiny_server.post("/api/show", {"model": "tiny"})
    assert shown["capabilities"] == ["completion"]
    assert "<|im_start|>" in shown["template"]
    assert shown["model_info"]["llama.context_length"] > 0
    assert tiny_server.client.post("/api/show", json={"model": "no"}).status_code == 404
    assert tiny_server.get("/api/version")["version"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "not JSON"),
        (b'{"model": "tiny", "messages": "x"}', "messages"),
        (b'{"model": "tiny", "messages": [{"role": "user", "images": ["x"]}]}', "no base64"),
        (b'{"model": "tiny", "messages": [{"role": "user", "images": ["eA=="]}]}', "--mmproj"),
        (b'{"model": "tiny", "messages": [{"role": "user"}], "options": {"top_p": 2}}', "top_p"),
        (b"[" * 100_000, ""),
        (b'{"model": "\xff"}', "UTF-8"),
    ],
)
def test_errors_have_ollamas_shape(tiny_server: Serving, body: bytes, said: str) -> None:
    answer = tiny_server.client.post("/api/chat", content=body)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}
    assert said in answer.json()["error"]


def test_a_prompt_that_does_not_fit(tiny_server: Serving) -> None:
    long = [{"role": "user", "content": "x" * 5000}]
    assert chat(tiny_server, messages=long).status_code == 400


# ------------------------------------------------------------------ translation


def test_what_a_chat_wants() -> None:
    asked = ChatRequest(
        model="m",
        messages=[
            ChatMessage(
                role="assistant",
                thinking="hm",
                tool_calls=[Call(function=CalledFunction(name="f", arguments={"a": "é"}))],
            ),
            ChatMessage(role="tool", content="4", tool_name="f"),
        ],
        options=Options(num_predict=-1, top_k=-1, stop="x", repeat_penalty=0),
        format="json",
        think="low",
    )
    wanted = chat_wanted(asked)
    answer, result = wanted.messages
    [call] = answer["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"a": "é"}
    assert answer["reasoning_content"] == "hm"
    assert result == {"role": "tool", "content": "4", "name": "f"}
    assert wanted.max_tokens is None
    assert (wanted.sampling.top_k, wanted.sampling.repeat_penalty) == (0, 0.01)
    assert wanted.stop == ("x",)
    assert wanted.grammar == (GrammarKind.JSON_SCHEMA, '{"type": "object"}')
    assert wanted.variables == {"enable_thinking": True, "reasoning_effort": "low"}


def test_what_is_null_is_as_if_it_were_not_there() -> None:
    nothing = {it.name: None for it in msgspec.structs.fields(Options)}
    message = [ChatMessage(role="user", content="x")]
    given = ChatRequest(model="m", messages=message, options=Options(**nothing))
    assert chat_wanted(given) == chat_wanted(ChatRequest(model="m", messages=message))
    sampling = chat_wanted(given).sampling
    assert (sampling.temperature, sampling.top_k, sampling.repeat_penalty) == (0.8, 40, 1.1)


def test_how_tokens_are_chosen() -> None:
    options = Options(
        top_p=0, seed=-1, repeat_last_n=-1, presence_penalty=1, frequency_penalty=-3, num_predict=0
    )
    wanted = generate_wanted(GenerateRequest(model="m", prompt="x", options=options))
    sampling = wanted.sampling
    assert (sampling.top_p, sampling.seed, sampling.repeat_last_n) == (0, None, 2**31 - 1)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -3)
    assert wanted.max_tokens is None


def test_calls_are_told_when_they_are_whole() -> None:
    reading = Reading()
    assert reading.take([Text("a"), Reasoning("b"), Text("c")]) == ("ac", "b", [])
    assert reading.take([CallBegins(0, "f"), Arguments(0, '{"x": ')]) == ("", "", [])
    _, _, [call] = reading.take([Arguments(0, "1}"), CallEnds(0)])
    assert call["function"] == {"name": "f", "arguments": {"x": 1}}
    cut = [CallBegins(1, "f"), Arguments(1, '{"x'), CallEnds(1, whole=False)]
    assert reading.take(cut) == ("", "", [])


@pytest.mark.parametrize(
    "text", ["NaN", "-Infinity", "1e999", "9" * 5000, "[" * 990 + "]" * 990, "[" * 10**5]
)
def test_a_call_that_json_cannot_tell_is_none(text: str) -> None:
    call = [CallBegins(0, "f"), Arguments(0, f'{{"x": {text}}}'), CallEnds(0)]
    assert Reading().take(call) == ("", "", [])


def test_half_a_character_of_a_call_is_replaced() -> None:
    text = r'{"a": "\ud83d\ude00 \ud83d \\ud83d", "\udc00": 1}'
    _, _, [told] = Reading().take([CallBegins(0, "f"), Arguments(0, text), CallEnds(0)])
    wanted = {"a": "\U0001f600 \ufffd \\ud83d", "\ufffd": 1}
    assert told["function"]["arguments"] == wanted
