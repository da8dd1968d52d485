"""Conversations of Anthropic's API, as OpenAI's chat completions have them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from isthmus.server.anthropic.conversation import Conversation, conversation_of, joined
from isthmus.server.anthropic.requests import InputMessage, TextBlock
from isthmus.server.anthropic.signature import signature_of
from isthmus.server.http.errors import HttpError

CALL: dict[str, Any] = {
    "type": "tool_use",
    "id": "toolu_1",
    "name": "weather",
    "input": {"city": "Zürich", "n": [1, 2.5, None]},
}
CALLED = {
    "id": "toolu_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Zürich", "n": [1, 2.5, null]}'},
}
RESULT: dict[str, Any] = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "rain"}
TOLD = {"role": "tool", "tool_call_id": "toolu_1", "name": "weather", "content": "rain"}
HI = {"role": "user", "content": "hi"}
BILLING = "x-anthropic-billing-header: cc_version=2.1.197.1c0; cc_entrypoint=sdk-cli;"


def text(said: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": said, **more}


def thought(said: str, signature: str = "") -> dict[str, Any]:
    return {"type": "thinking", "thinking": said, "signature": signature}


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def made_of(messages: list[Any], system: Any = None) -> Conversation:
    told = msgspec.convert(messages, list[InputMessage])
    return conversation_of(msgspec.convert(system, str | list[TextBlock] | None), told)


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([HI], [HI]),
        ([user(text("hi"))], [HI]),
        ([user(text("hi", cache_control={"type": "ephemeral", "scope": "global"}))], [HI]),
        ([user(text("a"), text("b"))], [{"role": "user", "content": "a\nb"}]),
        ([user(text("a\n"), text(""), text("b"))], [{"role": "user", "content": "a\nb"}]),
        ([HI, user(text("again"))], [{"role": "user", "content": "hi\nagain"}]),
        ([{"role": "user", "content": ""}], [{"role": "user", "content": ""}]),
        ([user()], [{"role": "user", "content": ""}]),
        (
            [HI, {"role": "assistant", "content": "yes"}, HI],
            [HI, {"role": "assistant", "content": "yes"}, HI],
        ),
        (  # an answer's texts are as the model wrote them
            [HI, assistant(text("ye"), text("s")), assistant(text("!")), HI],
            [HI, {"role": "assistant", "content": "yes!"}, HI],
        ),
        (
            [HI, assistant(text("let me see"), CALL), user(RESULT)],
            [HI, {"role": "assistant", "content": "let me see", "tool_calls": [CALLED]}, TOLD],
        ),
        (  # results come right after the calls, whatever else is said
            [HI, assistant(CALL), user(text("and now?"), RESULT)],
            [
                HI,
                {"role": "assistant", "content": "", "tool_calls": [CALLED]},
                TOLD,
                {"role": "user", "content": "and now?"},
            ],
        ),
        (
            [HI, assistant(thought("hm "), thought("so")), assistant(CALL), user(RESULT)],
            [
                HI,
                {
                    "role": "assistant",
                    "content": "",
                    "reasoning_content": "hm so",
                    "tool_calls": [CALLED],
                },
                TOLD,
            ],
        ),
        (
            [HI, assistant({"type": "redacted_thinking", "data": "xyz"}, text("yes")), HI],
            [HI, {"role": "assistant", "content": "yes"}, HI],
        ),
        (
            [HI, {"role": "system", "content": "be brief"}, assistant(text("yes")), HI],
            [
                HI,
                {"role": "system", "content": "be brief"},
                {"role": "assistant", "content": "yes"},
                HI,
            ],
        ),
    ],
)
def test_messages(messages: list[Any], expected: list[Any]) -> None:
    assert made_of(messages) == Conversation(tuple(expected))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, ""),
        ("", ""),
        ("rain", "rain"),
        ([], ""),
        ([text("rain"), text("wind")], "rain\nwind"),
        ([{"type": "tool_reference", "tool_name": "wind"}], "wind"),
    ],
)
def test_results(content: Any, expected: str) -> None:
    for is_error in (None, False, True):
        result = {**RESULT, "content": content, "is_error": is_error}
        told = made_of([HI, assistant(CALL), user(result)]).messages[-1]
        assert told == {**TOLD, "content": f"Error: {expected}" if is_error else expected}


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ("be kind", "be kind"),
        ([text("be kind"), text("be brief")], "be kind\nbe brief"),
        ([text(BILLING), text("be kind")], "be kind"),
        ([text(f"\n{BILLING}\n\nbe kind")], "be kind"),
        (f"{BILLING}\nbe kind\n{BILLING}", f"be kind\n{BILLING}"),
        (f"say {BILLING}", f"say {BILLING}"),
        (BILLING, None),
        ([], None),
        ("", None),
        (None, None),
    ],
)
def test_system_prompts(system: Any, expected: str | None) -> None:
    first = () if expected is None else ({"role": "system", "content": expected},)
    assert made_of([HI], system).messages == (*first, HI)


def test_a_checksum_in_the_conversation_is_dropped_in_instructions_only() -> None:
    told = made_of([user(text(BILLING)), {"role": "system", "content": [text(BILLING)]}])
    assert told.messages == ({"role": "user", "content": BILLING},)


def test_an_answer_that_is_begun() -> None:
    assert made_of([HI, assistant(text("the "), text("sun"))]) == Conversation((HI,), "the sun")
    assert made_of([HI, {"role": "assistant", "content": ""}]) == Conversation((HI,), "")
    for block in (CALL, thought("hm")):
        with pytest.raises(HttpError, match="only text can be continued"):
            made_of([HI, assistant(text("so"), block)])


@pytest.mark.parametrize(
    ("messages", "where"),
    [
        ([user(CALL)], "messages[0].content[0]"),
        ([user(text("a"), thought("b"))], "messages[0].content[1]"),
        ([HI, assistant(RESULT)], "messages[1].content[0]"),
        ([{"role": "system", "content": [CALL]}], "messages[0].content[0]"),
        ([{"role": "system", "content": [RESULT]}], "messages[0].content[0]"),
        ([user(RESULT)], "messages[0].content[0].tool_use_id"),
        (
            [user({**RESULT, "tool_use_id": "x"}), assistant(CALL)],
            "messages[0].content[0].tool_use_id",
        ),
    ],
)
def test_what_has_no_place(messages: list[Any], where: str) -> None:
    with pytest.raises(HttpError) as refused:
        made_of(messages)
    assert (refused.value.status, refused.value.param) == (400, where)


def test_thoughts_come_back_as_they_were_signed() -> None:
    said = "why? because: é\n"
    shown, hidden = (signature_of(said, hidden=it) for it in (False, True))
    assert said not in hidden
    for block in (
        thought(said, shown),
        thought("", hidden),
        thought(said, "WaUjzkypQ2"),
        thought(said),
    ):
        told = made_of([HI, assistant(block, text("so")), HI]).messages[1]
        assert told["reasoning_content"] == said
    for block in (
        thought(said[1:], shown),
        thought(said, shown[:-1]),
        thought("", hidden + "!"),
        thought("", "isthmus-text:/w=="),
    ):
        with pytest.raises(HttpError, match="send it back as it came") as refused:
            made_of([HI, assistant(block, text("so")), HI])
        assert refused.value.param == "messages[1].content[0]"


def test_texts_are_joined_by_a_line_break_where_there_is_none() -> None:
    assert joined(["a", "b\n", "c", "", "\nd", "e"]) == "a\nb\nc\nd\ne"
    assert joined([]) == joined(["", ""]) == ""


def test_many_small_messages_are_copied_once() -> None:
    """Each piece of text is touched a fixed number of times, however many there are."""
    told = made_of([user(text("x")) for _ in range(20_000)])
    assert told.messages == ({"role": "user", "content": "\n".join("x" * 20_000)},)
    answered = made_of([HI, *(assistant(text("x"), thought("y")) for _ in range(20_000)), HI])
    assert answered.messages[1]["content"] == "x" * 20_000
    assert len(answered.messages[1]["reasoning_content"]) == 20_000


def test_calls_are_json() -> None:
    [_, called, *_] = made_of([HI, assistant(CALL), user(RESULT)]).messages
    assert json.loads(called["tool_calls"][0]["function"]["arguments"]) == CALL["input"]
