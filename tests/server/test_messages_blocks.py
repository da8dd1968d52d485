"""Blocks of an answer, whole and as events, from what a parser makes of it."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import msgspec

from isthmus.model.forms import Arguments, CallBegins, CallEnds, Event, Reasoning, Text
from isthmus.server.anthropic.blocks import Blocks
from isthmus.server.anthropic.signature import signature_of, thought_of


def told(events: list[Event], **how: Any) -> tuple[list[Any], list[Any]]:
    """All events of the API, and the content at the end."""
    blocks = Blocks(**how)
    found = [it for event in events for it in blocks.take([event])]
    found += blocks.finish()
    return msgspec.to_builtins(found), msgspec.to_builtins(blocks.content)


def content_of(events: list[Any]) -> list[Any]:
    """What a client makes of events; AssertionError if they are not in order."""
    content: list[Any] = []
    pieces: list[str] = []
    opened = None
    for event in events:
        if event["type"] == "content_block_start":
            assert opened is None
            assert event["index"] == len(content)
            opened, pieces = dict(event["content_block"]), []
            continue
        assert opened is not None
        assert event["index"] == len(content)
        if event["type"] == "content_block_stop":
            if opened["type"] == "tool_use":
                opened["input"] = json.loads("".join(pieces) or "{}")
            content.append(opened)
            opened = None
            continue
        delta = event["delta"]
        for kind, name in (("text_delta", "text"), ("thinking_delta", "thinking")):
            if delta["type"] == kind:
                opened[name] += delta[name]
        if delta["type"] == "signature_delta":
            opened["signature"] = delta["signature"]
        if delta["type"] == "input_json_delta":
            pieces.append(delta["partial_json"])
    assert opened is None
    return content


CALL: list[Event] = [
    CallBegins(0, "weather"),
    Arguments(0, '{"city": "Z'),
    Arguments(0, 'ürich"}'),
    CallEnds(0),
]


def test_a_text() -> None:
    events, content = told([Text("he"), Text("llo")])
    assert events == [
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "he"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "llo"}},
        {"type": "content_block_stop", "index": 0},
    ]
    assert content == [{"type": "text", "text": "hello"}]


def test_thoughts_texts_and_calls_are_blocks_one_after_another() -> None:
    second = [CallBegins(1, "wind"), Arguments(1, "{}"), CallEnds(1)]
    events, content = told(
        [Reasoning("h"), Reasoning("m"), Text("\n\n"), Text("so"), Text("!\n"), *CALL, *second]
    )
    assert content_of(events) == content
    ids = [it.pop("id") for it in content[2:]]
    assert len(set(ids)) == 2
    assert all(it.startswith("toolu_") for it in ids)
    assert content == [
        {"type": "thinking", "thinking": "hm", "signature": signature_of("hm", hidden=False)},
        {"type": "text", "text": "\n\nso!\n"},
        {"type": "tool_use", "name": "weather", "input": {"city": "Zürich"}},
        {"type": "tool_use", "name": "wind", "input": {}},
    ]
    signed = [it for it in events if it.get("delta", {}).get("type") == "signature_delta"]
    assert events.index(signed[0]) + 1 == events.index({"type": "content_block_stop", "index": 0})


def test_no_block_is_blank() -> None:
    events, content = told([Reasoning("hm"), Text("\n"), Text(" \n"), *CALL, Text("\n")])
    assert [it["type"] for it in content] == ["thinking", "tool_use"]
    assert content_of(events) == content
    assert told([Text("\n")]) == ([], [])
    assert told([]) == ([], [])


def test_hidden_thoughts_are_in_their_signatures() -> None:
    events, content = told([Reasoning("h"), Reasoning("m"), Text("so")], hides_thoughts=True)
    assert content_of(events) == content
    assert "thinking_delta" not in str(events)
    assert content[0]["thinking"] == ""
    assert thought_of("", content[0]["signature"]) == "hm"
    assert content[1] == {"type": "text", "text": "so"}


def test_half_a_command_is_none() -> None:
    for cut in ('{"command": "rm -rf /tmp', "", "[1]", "[" * 100_000):
        _, content = told([CallBegins(0, "bash"), Arguments(0, cut), CallEnds(0, whole=False)])
        assert [it["input"] for it in content] == [{}]
    for odd in ('{"x": NaN}', '{"x": 1e999}'):
        _, content = told([CallBegins(0, "bash"), Arguments(0, odd), CallEnds(0)])
        assert [it["input"] for it in content] == [{}]
    _, content = told([CallBegins(0, "bash"), Arguments(0, r'{"x": "\ud800"}'), CallEnds(0)])
    assert [it["input"] for it in content] == [{"x": "\ufffd"}]
    _, content = told([CallBegins(0, "bash"), Arguments(0, '{"command": "ls')])
    assert [it["input"] for it in content] == [{}]


def test_whatever_comes_streamed_is_as_whole() -> None:
    chosen = random.Random(5)
    calls = itertools.count()

    def call() -> list[Event]:
        index = next(calls)
        return [
            CallBegins(index, "f"),
            Arguments(index, '{"a":'),
            Arguments(index, "1}"),
            CallEnds(index),
        ]

    for _ in range(300):
        makers = [
            lambda: [Text(chosen.choice("a b\n"))],
            lambda: [Reasoning(chosen.choice("x \n"))],
            call,
        ]
        events: list[Event] = []
        for _ in range(chosen.randrange(12)):
            events += chosen.choice(makers)()
        found, content = told(events)
        assert content_of(found) == content
        said = "".join(it.text for it in events if isinstance(it, Text))
        texts = "".join(it.get("text", "") for it in content)
        assert "".join(texts.split()) == "".join(said.split())
        thoughts = "".join(it.text for it in events if isinstance(it, Reasoning))
        assert "".join(it.get("thinking", "") for it in content) == thoughts
