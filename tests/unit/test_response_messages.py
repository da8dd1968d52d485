"""Items as turns of a chat template."""

from __future__ import annotations

from typing import Any

import pytest

from isthmus.server.http.errors import HttpError
from isthmus.server.responses.items import items_of
from isthmus.server.responses.messages import messages_of
from isthmus.server.responses.sealing import seal, unseal

CALL = {"type": "function_call", "name": "f", "call_id": "c1", "arguments": '{"a": 1}'}
TOLD_CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
THOUGHT = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "2"}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


TABLE: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "nothing": ([], []),
    "a user": ([{"role": "user", "content": "q"}], [{"role": "user", "content": "q"}]),
    "several parts": (
        [
            {
                "role": "developer",
                "content": [{"type": "input_text", "text": it} for it in ("a", "b")],
            }
        ],
        [{"role": "developer", "content": [{"type": "text", "text": it} for it in ("a", "b")]}],
    ),
    "thought, text, call, output": (
        [THOUGHT, said("let me see"), CALL, OUTPUT, said("2")],
        [
            {
                "role": "assistant",
                "content": "let me see",
                "reasoning_content": "hm",
                "tool_calls": [TOLD_CALL],
            },
            {"role": "tool", "tool_call_id": "c1", "name": "f", "content": "2"},
            {"role": "assistant", "content": "2"},
        ],
    ),
    "two calls at once": (
        [CALL, {**CALL, "call_id": "c2", "namespace": "n"}, OUTPUT],
        [
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    TOLD_CALL,
                    {
                        "id": "c2",
                        "type": "function",
                        "function": {"name": "n__f", "arguments": '{"a": 1}'},
                    },
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "name": "f", "content": "2"},
        ],
    ),
    "a custom call": (
        [
            {"type": "custom_tool_call", "name": "patch", "call_id": "c3", "input": 'say "hi"\n'},
            {"type": "custom_tool_call_output", "call_id": "c3", "output": "ok"},
        ],
        [
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {
                        "id": "c3",
                        "type": "function",
                        "function": {
                            "name": "patch",
                            "arguments": '{"input": "say \\"hi\\"\\n"}',
                        },
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "c3", "name": "patch", "content": "ok"},
        ],
    ),
    "two texts, and a thought that is empty": (
        [
            said("a"),
            {"type": "reasoning", "summary": []},
            said("b"),
            {"role": "user", "content": "c"},
        ],
        [{"role": "assistant", "content": "a\n\nb"}, {"role": "user", "content": "c"}],
    ),
    "a thought that nothing follows": (
        [{"type": "reasoning", "summary": []}, {"role": "user", "content": "c"}],
        [{"role": "user", "content": "c"}],
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_each(name: str) -> None:
    items, expected = TABLE[name]
    assert messages_of(items_of(items)) == expected


def test_instructions_come_first() -> None:
    found = messages_of(items_of("q"), "be kind")
    assert found == [{"role": "system", "content": "be kind"}, {"role": "user", "content": "q"}]


def test_an_output_needs_its_call() -> None:
    with pytest.raises(HttpError) as refused:
        messages_of(items_of([OUTPUT]))
    assert (refused.value.status, refused.value.code) == (400, "call_not_found")


@pytest.mark.parametrize("thought", ["", "hm", 'ü "q" \n <|im_end|> \x00 😀'])
def test_a_sealed_thought_comes_back(thought: str) -> None:
    assert unseal(seal(thought)) == thought
    sealed = {"type": "reasoning", "summary": [], "encrypted_content": seal(thought)}
    found = messages_of(items_of([sealed, said("a")]))
    assert found[0].get("reasoning_content", "") == thought


@pytest.mark.parametrize("sealed", ["", "gAAAAABo", "isthmus.1.!", "isthmus.1._w==", "isthmus.1"])
def test_what_others_sealed_is_refused_unless_there_is_a_summary(sealed: str) -> None:
    given = {"type": "reasoning", "summary": [], "encrypted_content": sealed}
    with pytest.raises(HttpError) as refused:
        messages_of(items_of([given]))
    assert refused.value.code == "invalid_encrypted_content"
    summary = [{"type": "summary_text", "text": "in short"}]
    found = messages_of(items_of([{**given, "summary": summary}, said("a")]))
    assert found[0]["reasoning_content"] == "in short"
