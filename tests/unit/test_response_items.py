"""Items of a request: what becomes of each kind, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from isthmus.server.http.errors import HttpError
from isthmus.server.responses.fields import ITEMS
from isthmus.server.responses.ids import (
    Nowhere,
    Place,
    agent_of_conversation,
    conversation_of,
    place_of_item,
    place_of_response,
)
from isthmus.server.responses.items import items_of, with_ids

USER = {"type": "input_text", "text": "hello"}
SAID = {"type": "output_text", "text": "hi", "annotations": [], "logprobs": []}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a text": (
        {"role": "user", "content": "hello"},
        {"type": "message", "role": "user", "content": [USER]},
    ),
    "parts": (
        {"type": "message", "role": "developer", "content": [USER, {"type": "text", "text": "b"}]},
        {
            "type": "message",
            "role": "developer",
            "content": [USER, {"type": "input_text", "text": "b"}],
        },
    ),
    "what was said": (
        {"type": "message", "role": "assistant", "content": [SAID], "phase": "final_answer"},
        {"type": "message", "role": "assistant", "content": [SAID]},
    ),
    "said, told as input": (
        {"role": "assistant", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "message", "role": "assistant", "content": [SAID]},
    ),
    "a refusal": (
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "refusal", "refusal": "no"}],
        },
    ),
    "a call": (
        {"type": "function_call", "name": "f", "call_id": "c", "arguments": "{}", "namespace": "n"},
        {"type": "function_call", "name": "f", "call_id": "c", "arguments": "{}", "namespace": "n"},
    ),
    "its output": (
        {"type": "function_call_output", "call_id": "c", "output": "done"},
        {"type": "function_call_output", "call_id": "c", "output": "done"},
    ),
    "its output in parts": (
        {"type": "function_call_output", "call_id": "c", "output": [USER]},
        {"type": "function_call_output", "call_id": "c", "output": [USER]},
    ),
    "a custom call": (
        {"type": "custom_tool_call", "name": "f", "call_id": "c", "input": "x"},
        {"type": "custom_tool_call", "name": "f", "call_id": "c", "input": "x"},
    ),
    "a thought": (
        {"type": "reasoning", "summary": [], "encrypted_content": "x"},
        {"type": "reasoning", "summary": [], "encrypted_content": "x"},
    ),
    "a thought in plain text": (
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "t"}]},
        {
            "type": "reasoning",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "t"}],
            "encrypted_content": None,
        },
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_each_kind(name: str) -> None:
    given, expected = KINDS[name]
    (item,) = items_of([given])
    assert item == {"id": None, "status": "completed", **expected}
    (again,) = items_of([item])
    assert again == item


def test_a_text_is_a_message_of_the_user() -> None:
    assert items_of("hello") == items_of([KINDS["a text"][0]])
    assert items_of("") == []


def test_references_and_tools_keep_what_they_say() -> None:
    reference = {"type": "item_reference", "id": "msg_1"}
    assert items_of([{"id": "msg_1"}]) == items_of([reference]) == [reference]
    tools = [{"type": "function", "name": "f"}]
    given = {"type": "additional_tools", "role": "developer", "id": "at_1", "tools": tools}
    assert items_of([given]) == [{"id": "at_1", "type": "additional_tools", "tools": tools}]


BAD: list[tuple[Any, str]] = [
    ({"type": "web_search_call", "id": "ws"}, "input[1]"),
    ({"type": 3}, "input[1]"),
    ({"role": "tool", "content": "x"}, "input[1].role"),
    ({"role": "user"}, "input[1].content"),
    (
        {"role": "user", "content": [{"type": "input_video", "video_url": "x"}]},
        "input[1].content[0]",
    ),
    ({"role": "user", "content": [{"type": "input_text"}]}, "input[1].content[0]"),
    ({"role": "user", "content": 3}, "input[1].content"),
    ({"type": "function_call", "name": "f", "call_id": "c"}, "input[1].arguments"),
    ({"type": "function_call_output", "call_id": 3, "output": ""}, "input[1].call_id"),
    ({"type": "item_reference"}, "input[1].id"),
    ({"role": "user", "content": "x", "id": ""}, "input[1].id"),
    ({"role": "user", "content": "x", "id": 7}, "input[1].id"),
    ({"role": "user", "content": "x", "id": "first"}, "input"),
]


@pytest.mark.parametrize(("item", "param"), BAD)
def test_what_is_refused_is_named(item: Any, param: str) -> None:
    with pytest.raises(HttpError) as refused:
        items_of([{"role": "user", "content": "x", "id": "first"}, item])
    assert (refused.value.status, refused.value.param) == (400, param)


def test_ids_say_where_items_are_kept() -> None:
    place = Place.at("abcdefghijkl", 12)
    items = with_ids(items_of([{"role": "user", "content": "x"}, KINDS["a call"][0]]), place.input)
    assert place_of_response(place.response) == place
    assert [place_of_item(it["id"]) for it in items] == [place, place]
    assert place_of_item(place.output("message", 3)) == place
    assert len({it["id"] for it in items} | {place.output("message", 0)}) == 3
    mine = with_ids(items_of([{"role": "user", "content": "x", "id": "mine"}]), place.input)
    assert mine[0]["id"] == "mine"


def test_other_ids_are_nowhere() -> None:
    place = Place("abcdefghijkl", 1, "12345678")
    good = place.response
    bad = ["", "resp_", good[:-1], good + "x", good.upper(), good + "\n", "resp_" + "0" * 99]
    bad += [good[:-1] + "0", good.replace("1", "\u0661"), place.output("message", 0)]
    assert [place_of_response(it) for it in bad] == [None] * len(bad)
    assert place_of_item(Nowhere().output("message", 0)) is None
    assert place_of_item(good) is None
    assert agent_of_conversation(conversation_of("abcdefghijkl")) == "abcdefghijkl"
    assert agent_of_conversation("conv_../../x") is None
    assert Place.at("abcdefghijkl", 1) != Place.at("abcdefghijkl", 1)


def test_every_kind_of_item_of_the_table_is_read() -> None:
    read = {given.get("type", "message") for given, _ in KINDS.values()}
    assert read | {"custom_tool_call_output", "item_reference", "additional_tools"} == set(ITEMS)
