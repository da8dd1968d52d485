"""Thoughts of a model as reasoning items: told, counted, given back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests import tiny_gguf
from tests.server.conftest import Serving
from tests.tiny_gguf import TinyLlama

THINKING = """\
{%- for m in messages %}<|im_start|>{{ m.role }}
{% if m.reasoning_content %}<think>
{{ m.reasoning_content }}
</think>

{% endif %}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif %}"""
BUDGET = 6


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server of a model whose template opens a thought."""
    folder = tmp_path_factory.mktemp("thinker")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tiny_gguf, "CHATML", THINKING)
        path = TinyLlama(with_tokenizer=True, quantisation="Q8_0").write(folder / "tiny.gguf")
    serving = Serving(folder / "data", "--model", f"tiny={path}", "--n-ctx", "512")
    yield serving
    assert serving.stop() == 0


def body(items: Any, **how: Any) -> dict[str, Any]:
    given = {"model": "tiny", "input": items, "max_output_tokens": 40, "temperature": 0}
    return {**given, "thinking_budget": BUDGET, "ignore_eos": True, **how}


def ask(serving: Serving, items: Any, **how: Any) -> dict[str, Any]:
    return serving.post("/v1/responses", body(items, **how))


def events(serving: Serving, items: Any, **how: Any) -> list[dict[str, Any]]:
    with serving.client.stream("POST", "/v1/responses", json=body(items, stream=True, **how)) as s:
        return [json.loads(it[6:]) for it in s.iter_lines() if it.startswith("data: ")]


def test_a_thought_is_an_item_of_its_own(thinker: Serving) -> None:
    done = ask(thinker, "hello")
    thought, message = done["output"]
    assert (thought["type"], message["type"]) == ("reasoning", "message")
    assert thought["summary"] == []
    assert thought["content"][0]["type"] == "reasoning_text"
    n_thought = done["usage"]["output_tokens_details"]["reasoning_tokens"]
    assert BUDGET <= n_thought < done["usage"]["output_tokens"] == 40
    kinds = [it["type"] for it in events(thinker, "hello")]
    order = ["reasoning_text.delta", "reasoning_text.done", "output_item.done", "output_text.delta"]
    at = [kinds.index(f"response.{it}") for it in order]
    assert at == sorted(at)


def test_a_thought_can_be_told_as_its_summary(thinker: Serving) -> None:
    plain = ask(thinker, "hello")["output"][0]["content"][0]["text"]
    told = events(thinker, "hello", reasoning={"summary": "auto"})
    deltas = [it["delta"] for it in told if it["type"].endswith("reasoning_summary_text.delta")]
    assert "".join(deltas) == plain
    assert told[-1]["response"]["output"][0]["summary"] == [{"type": "summary_text", "text": plain}]


def test_a_caller_who_keeps_everything_gives_thoughts_back(thinker: Serving) -> None:
    first = ask(thinker, "hello")
    chained = ask(thinker, "on", previous_response_id=first["id"])
    how: Any = {"store": False, "include": ["reasoning.encrypted_content"]}
    alone = ask(thinker, "hello", **how)
    thought, message = alone["output"]
    assert thought["encrypted_content"]
    hello, on = {"role": "user", "content": "hello"}, {"role": "user", "content": "on"}
    sealed = {name: thought[name] for name in ("id", "type", "summary", "encrypted_content")}
    for given in (thought, sealed):
        again = ask(thinker, [hello, given, message, on], **how)
        assert again["output"][1]["content"] == chained["output"][1]["content"]
        assert again["usage"]["input_tokens"] == chained["usage"]["input_tokens"]
    without = ask(thinker, [hello, message, on], **how)
    assert without["usage"]["input_tokens"] < chained["usage"]["input_tokens"]


def test_a_format_is_followed_without_a_thought(thinker: Serving) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"]}
    form = {"type": "json_schema", "name": "x", "schema": {**schema, "additionalProperties": False}}
    done = ask(thinker, "hello", text={"format": form}, ignore_eos=False)
    assert [it["type"] for it in done["output"]] == ["message"]
    assert json.loads(done["output"][0]["content"][0]["text"]) == {"a": 1}
