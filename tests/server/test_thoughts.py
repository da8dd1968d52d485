"""Thoughts of models: told apart from their answers, and closed when their tokens are used up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.conftest import Serving
from tests.tiny_gguf import CHATML, TinyLlama

THINKING = CHATML.replace("assistant\n", "assistant\n<think>\n")
BOUND = 7
"""Tokens of a thought; each is a byte."""


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server of a tiny model whose template opens a thought."""
    folder = tmp_path_factory.mktemp("thinker")
    path = TinyLlama(with_tokenizer=True, chat_template=THINKING).write(folder / "tiny.gguf")
    serving = Serving(folder / "data", "--model", f"tiny={path}", "--n-ctx", "1024")
    yield serving
    assert serving.stop() == 0


def asked(**more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "hello"}]
    return {
        "model": "tiny", "messages": messages, "max_tokens": 100, "seed": 3, "ignore_eos": True,
        **more,
    }  # fmt: skip


def test_what_is_thought_is_no_answer(thinker: Serving) -> None:
    made = thinker.post("/v1/chat/completions", asked())
    [choice] = made["choices"]
    assert choice["message"]["reasoning_content"]
    assert choice["message"]["content"] == ""
    assert choice["finish_reason"] == "length"
    told = made["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert 50 < told <= made["usage"]["completion_tokens"] == 100


def test_a_thought_is_closed_when_its_tokens_are_used_up(thinker: Serving) -> None:
    [free] = thinker.post("/v1/chat/completions", asked())["choices"]
    closed = thinker.post("/v1/chat/completions", asked(thinking_budget=BOUND))
    [choice] = closed["choices"]
    message = choice["message"]
    begins = message["reasoning_content"].rstrip("\n\ufffd")
    assert 0 < len(begins) < len(free["message"]["reasoning_content"]) / 2
    assert free["message"]["reasoning_content"].startswith(begins)
    assert "think" not in message["content"]
    assert len(message["content"]) > BOUND
    usage = closed["usage"]["completion_tokens_details"]
    assert 0 < usage["reasoning_tokens"] <= BOUND + 3
    [choice] = thinker.post("/v1/chat/completions", asked(thinking_budget=0))["choices"]
    assert "reasoning_content" not in choice["message"]
    assert choice["message"]["content"]


def test_a_form_is_the_answers_and_not_the_thoughts(thinker: Serving) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = asked(response_format=wanted, ignore_eos=False)
    [choice] = thinker.post("/v1/chat/completions", body)["choices"]
    assert choice["message"]["content"].startswith("{")
    assert "reasoning_content" not in choice["message"]


def test_a_call_that_must_be_made_comes_after_the_thought(thinker: Serving) -> None:
    tool = {"type": "function", "function": {"name": "now", "parameters": {
        "type": "object", "properties": {}, "additionalProperties": False}}}  # fmt: skip
    body = asked(tools=[tool], tool_choice="required", thinking_budget=BOUND, ignore_eos=False)
    [choice] = thinker.post("/v1/chat/completions", body)["choices"]
    assert choice["message"]["reasoning_content"]
    [call] = choice["message"]["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("now", {})
    assert choice["finish_reason"] == "tool_calls"


def test_what_a_template_leaves_out_is_told_once_in_the_log(thinker: Serving) -> None:
    log = thinker.data.parent / f"{thinker.data.name}.log"
    tool = {"type": "function", "function": {"name": "now"}}
    for _ in range(3):
        answer = thinker.post("/v1/chat/completions", asked(tools=[tool], max_tokens=1))
        assert any("tools" in it for it in answer["warnings"])
    assert sum("tools" in line for line in log.read_text().splitlines()) == 1
