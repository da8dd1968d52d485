"""Answers of Anthropic's API from the steps of a model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.requests import Request

from isthmus.errors import DeadlineExceeded, Overloaded
from isthmus.model.forms import Arguments, CallBegins, CallEnds, Event, Reasoning, Text
from isthmus.server.anthropic.answer import MessageAnswer
from isthmus.server.anthropic.errors import as_anthropic, shape_of
from isthmus.server.generation.prepared import Prepared, Step
from isthmus.server.generation.request import End
from isthmus.server.generation.tokens import Token
from isthmus.server.http.entry import Entry, begin
from isthmus.server.http.errors import HttpError, body_of, respond_to
from tests.server.test_messages_blocks import content_of

CALL: list[Event] = [CallBegins(0, "f"), Arguments(0, '{"a": 1}'), CallEnds(0)]


def prepared(*items: Event | End | Exception, warnings: tuple[str, ...] = ()) -> Prepared:
    """A model that says this, an event with each token."""

    async def steps() -> AsyncGenerator[Step | End, None]:
        for item in items:
            if isinstance(item, Exception):
                raise item
            yield item if isinstance(item, End) else Step(Token(1, ""), (item,))

    request = SimpleNamespace(prompt=[0] * 50, max_tokens=20)
    made = SimpleNamespace(model="m", request=request, warnings=warnings, steps=steps)
    return cast("Prepared", made)


def http() -> Request:
    async def receive() -> Any:
        await asyncio.Event().wait()

    return Request({"type": "http", "headers": [], "method": "POST"}, receive)


def whole(made: Prepared, *, hides: bool = False) -> Any:
    answer = MessageAnswer(made, hides_thoughts=hides)
    return json.loads(asyncio.run(answer.respond(http(), stream=False)).body)


def streamed(made: Prepared, *, hides: bool = False) -> list[tuple[str, Any]]:
    """The names and the data of events."""

    async def read() -> str:
        entry = Entry("req_1", "POST", "/v1/messages", shape=as_anthropic)
        begin(entry)
        answer = await MessageAnswer(made, hides_thoughts=hides).respond(http(), stream=True)
        return "".join([bytes(it).decode() async for it in cast("Any", answer).body_iterator])

    events = []
    for said in asyncio.run(read()).split("\n\n")[:-1]:
        name, data = said.split("\n")
        events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events


@pytest.mark.parametrize(
    ("said", "end", "reason"),
    [
        ([Text("a")], End("stop", 3, 10), "end_turn"),
        ([], End("stop", 0, 0), "end_turn"),
        ([Text("a")], End("length", 20, 10), "max_tokens"),
        ([Text("a")], End("length", 3, 10), "model_context_window_exceeded"),
        ([Text("a")], End("stop", 3, 10, "###"), "stop_sequence"),
        (CALL, End("stop", 3, 10), "tool_use"),
        ([Text("a"), *CALL], End("stop", 3, 10), "tool_use"),
        (CALL[:2], End("length", 20, 10), "max_tokens"),
        ([Reasoning("hm"), Text("a")], End("stop", 3, 10), "end_turn"),
    ],
)
def test_whole_and_streamed(said: list[Event], end: End, reason: str) -> None:
    told = whole(prepared(*said, end))
    assert (told["stop_reason"], told["stop_sequence"]) == (reason, end.stop)
    assert (told["type"], told["role"], told["model"]) == ("message", "assistant", "m")
    thoughts = sum(isinstance(it, Reasoning) for it in said)
    assert told["usage"] == {
        "input_tokens": 50 - end.n_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": end.n_cached,
        "output_tokens": end.n_tokens,
        "output_tokens_details": {"thinking_tokens": thoughts},
    }
    events = streamed(prepared(*said, end))
    assert all(name == data["type"] for name, data in events)
    assert [name for name, _ in events[:2]] == ["message_start", "ping"]
    assert [name for name, _ in events[-2:]] == ["message_delta", "message_stop"]
    start, delta = events[0][1]["message"], events[-2][1]
    assert start["content"] == []
    assert (start["stop_reason"], start["usage"]["input_tokens"]) == (None, 50)
    assert delta["delta"] == {"stop_reason": reason, "stop_sequence": end.stop}
    assert delta["usage"] == told["usage"]
    if reason != "max_tokens" or said != CALL[:2]:
        assert _without_ids(content_of([it for _, it in events[2:-2]])) == _without_ids(
            told["content"]
        )


def _without_ids(content: list[Any]) -> list[Any]:
    return [{**it, "id": None} for it in content]


def test_ids_are_unique() -> None:
    each = [whole(prepared(*CALL, End("stop", 3, 0))) for _ in range(3)]
    assert len({it["id"] for it in each}) == 3
    assert len({it["content"][0]["id"] for it in each}) == 3
    assert all(it["id"].startswith("msg_") for it in each)


def test_thoughts_that_are_hidden_have_no_events() -> None:
    said = [Reasoning("hm")] * 200
    made = prepared(*said, Text("so"), End("stop", 201, 0))
    names = [name for name, _ in streamed(made, hides=True)]
    assert names.count("content_block_start") == 2
    assert names.count("content_block_delta") == 2  # a signature, and the text


def test_warnings_are_told() -> None:
    made = prepared(Text("a"), End("stop", 1, 0), warnings=("no tools",))
    assert whole(made)["warnings"] == ["no tools"]
    assert streamed(made)[0][1]["message"]["warnings"] == ["no tools"]
    assert "warnings" not in whole(prepared(Text("a"), End("stop", 1, 0)))


def test_an_error_before_the_first_token_has_a_status() -> None:
    with pytest.raises(Overloaded):
        streamed(prepared(Overloaded("later")))
    with pytest.raises(Overloaded):
        whole(prepared(Overloaded("later")))


def test_an_error_in_a_stream_is_an_event() -> None:
    name, data = streamed(prepared(Text("a"), DeadlineExceeded("too slow")))[-1]
    assert name == "error"
    assert data == {
        "type": "error",
        "error": {"type": "timeout_error", "message": "too slow"},
        "request_id": "req_1",
    }


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (HttpError(400, "x"), 400, "invalid_request_error"),
        (HttpError(401, "x"), 401, "authentication_error"),
        (HttpError(403, "x"), 403, "permission_error"),
        (HttpError(404, "x"), 404, "not_found_error"),
        (HttpError(405, "x"), 405, "invalid_request_error"),
        (HttpError(408, "x"), 408, "timeout_error"),
        (HttpError(413, "x"), 413, "request_too_large"),
        (HttpError(429, "x", retry_s=5), 429, "rate_limit_error"),
        (HttpError(503, "x"), 529, "overloaded_error"),
        (Overloaded("x"), 529, "overloaded_error"),
        (DeadlineExceeded("x"), 504, "timeout_error"),
        (ValueError("x"), 500, "api_error"),
    ],
)
def test_errors_have_the_shape_of_the_api_that_is_asked(
    error: Exception, status: int, kind: str
) -> None:
    begin(Entry("req_1", "POST", "/v1/messages", shape=as_anthropic))
    answer = respond_to(error)
    told = json.loads(bytes(answer.body))
    assert (answer.status_code, told["type"], told["request_id"]) == (status, "error", "req_1")
    assert told["error"].keys() == {"type", "message"}
    assert told["error"]["type"] == kind
    assert ("retry-after" in answer.headers) is (
        status == 529 or bool(getattr(error, "retry_s", 0))
    )
    begin(Entry("req_2", "POST", "/v1/chat/completions"))
    assert json.loads(bytes(respond_to(error).body)) == body_of(error)[1]


def test_a_message_begins_with_what_is_wrong() -> None:
    begin(Entry("req_1", "POST", "/v1/messages", shape=as_anthropic))
    error = HttpError(400, "no images", param="messages[0].content[12].type")
    told = json.loads(bytes(respond_to(error).body))["error"]["message"]
    assert told == "messages.0.content.12.type: no images"


def test_which_requests_are_of_this_api() -> None:
    version = [(b"anthropic-version", b"2026-10-21")]
    for path, headers, speaks in (
        ("/v1/messages", [], True),
        ("/v1/messages/count_tokens", [], True),
        ("/v1/messages/none", [], True),
        ("/v1/messages2", version, False),
        ("/v1/models", [], False),
        ("/v1/models", version, True),
        ("/v1/models/x/y", version, True),
        ("/v1/chat/completions", version, False),
    ):
        assert (shape_of({"path": path, "headers": headers}) is not None) is speaks
