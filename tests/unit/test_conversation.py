"""Conversations as clients write them, made into what templates expect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from isthmus.errors import Cancelled, IsthmusError, SettingsError, TemplateError
from isthmus.model.chat import conversation
from isthmus.model.chat.chat_template import ChatTemplate
from isthmus.model.chat.conversation import MAX_DEPTH, Conversation, prepared, text_of
from isthmus.model.chat.template_traits import Traits
from tests.templates.huggingface import FORMS

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}\n{% endfor %}"
    "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}"
)
USER = {"role": "user", "content": "Hello"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def traits_of(source: str) -> Traits:
    return Traits(ChatTemplate(source, bos="<s>", eos="</s>"))


TRAITS = {name: traits_of(source) for name, source in {**FORMS, "chatml": CHATML}.items()}


def messages_of(messages: list[Any], template: str = "chatml") -> list[Any]:
    return list(prepared(Conversation(messages), TRAITS[template])[0].messages)


def text(messages: list[Any], template: str = "chatml") -> str:
    traits = TRAITS[template]
    ready, _ = prepared(Conversation(messages), traits)
    return traits.template.render(ready.messages, add_generation_prompt=True, tools=ready.tools)


def warnings(template: str, messages: list[Any], **more: Any) -> tuple[str, ...]:
    return prepared(Conversation(messages, **more), TRAITS[template])[1]


def call(arguments: Any, name: str = "call_1") -> dict[str, Any]:
    return {"id": name, "type": "function", "function": {"name": "add", "arguments": arguments}}


def calling(arguments: Any) -> Any:
    """The arguments of a call, as the template gets them."""
    asked = [USER, {"role": "assistant", "content": "", "tool_calls": [call(arguments)]}]
    return messages_of(asked)[1]["tool_calls"][0]["function"]["arguments"]


# ---------------------------------------------------------------------- messages


def test_what_is_null_is_left_out() -> None:
    given = {"role": "user", "content": "a", "name": None, "tool_calls": None, "refusal": None}
    assert messages_of([given]) == [{"role": "user", "content": "a"}]
    assert messages_of([{"role": "user", "content": None}]) == [{"role": "user", "content": ""}]
    assert messages_of([{"role": "user"}]) == [{"role": "user", "content": ""}]
    [_, turn] = messages_of([USER, {"role": "assistant", "content": "b", "tool_calls": []}])
    assert turn == {"role": "assistant", "content": "b"}


def test_reasoning_has_the_names_that_templates_read() -> None:
    for name in ("reasoning_content", "thinking", "reasoning"):
        [_, turn] = messages_of([USER, {"role": "assistant", "content": "b", name: "why"}])
        assert turn["reasoning_content"] == turn["thinking"] == turn.get(name) == "why"
    both = {"role": "assistant", "content": "b", "thinking": "x", "reasoning_content": "y"}
    [_, turn] = messages_of([USER, both])
    assert (turn["thinking"], turn["reasoning_content"]) == ("x", "y")
    assert "thinking" not in messages_of([{**USER, "reasoning": None}])[0]


def test_reasoning_under_names_of_a_templates_own() -> None:
    source = "{% for m in messages %}{{ m.content }}{{ m.thought or m.tool_plan }}{% endfor %}"
    asked = [USER, {"role": "assistant", "content": "b", "reasoning_content": "why"}]
    turn = prepared(Conversation(asked), traits_of(source))[0].messages[1]
    assert turn["thought"] == turn["tool_plan"] == turn["reasoning_content"] == "why"
    assert "reasoning" not in turn
    assert "tool_plan" not in messages_of(asked, "command_r")[1]


def test_the_callers_messages_stay_as_they_are() -> None:
    turn = {"role": "assistant", "content": None, "tool_calls": [call('{"a": 1}')]}
    messages_of([{"role": "developer", "content": "x"}, USER, turn])
    assert turn == {"role": "assistant", "content": None, "tool_calls": [call('{"a": 1}')]}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ('{"a": [1, {"b": null}], "é": "\\u00e9"}', {"a": [1, {"b": None}], "é": "é"}),
        ('{"a": 1, "a": 2}', {"a": 2}),
        (' {"a": 1}\n', {"a": 1}),
        ({"a": 1}, {"a": 1}),
        ("", {}),
        (None, {}),
        ("{}", {}),
        ("[1]", "[1]"),
        ("7", "7"),
        ('"a"', '"a"'),
        ("{'a': 1}", "{'a': 1}"),
        ('{"a": NaN}', '{"a": NaN}'),
        ('{"a": -Infinity}', '{"a": -Infinity}'),
        ('{"a": 1e999}', '{"a": 1e999}'),
        ('{"a": 1', '{"a": 1'),
        ("[" * 100_000, "[" * 100_000),
        ('{"a": ' * 500 + "1" + "}" * 500, '{"a": ' * 500 + "1" + "}" * 500),
        ('{"a": ' + "9" * 5000 + "}", '{"a": ' + "9" * 5000 + "}"),
    ],
)
def test_arguments_are_mappings(given: Any, wanted: Any) -> None:
    """Text that is no JSON of an object stays text."""
    assert calling(given) == wanted


def test_arguments_are_text_for_templates_that_want_it() -> None:
    asked = [USER, {"role": "assistant", "tool_calls": [call({"a": "é"}), call('{"b":2}')]}]
    calls = messages_of(asked, "deepseek_r1")[1]["tool_calls"]
    assert [it["function"]["arguments"] for it in calls] == ['{"a": "é"}', '{"b":2}']


def test_a_content_beside_calls_is_what_the_template_takes() -> None:
    def contents(template: str, **content: Any) -> Any:
        turn = {"role": "assistant", "tool_calls": [call("{}")], **content}
        return messages_of([USER, turn], template)[1].get("content", "absent")

    assert contents("chatml", content=None) == "absent"
    assert contents("chatml", content="") == ""
    assert contents("deepseek_r1", content="") is None
    assert contents("deepseek_r1") is None
    assert contents("qwen25", content="text") == "text"


def test_ids_of_nine_letters_for_templates_that_want_them() -> None:
    long, short = "call_abcdefghijklmnop", "abc123XYZ"
    asked = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call("{}", long), call("{}", short)]},
        {"role": "tool", "tool_call_id": long, "content": "1"},
        {"role": "tool", "tool_call_id": short, "content": "2"},
    ]
    [_, turn, first, second] = messages_of(asked, "mistral_v3")
    ids = [it["id"] for it in turn["tool_calls"]]
    assert ids == [first["tool_call_id"], second["tool_call_id"]]
    assert ids[1] == short
    assert len(ids[0]) == 9
    assert ids[0].isalnum()
    assert f'"id": "{ids[0]}"' in text(asked, "mistral_v3")
    assert messages_of(asked)[1]["tool_calls"][0]["id"] == long


# ---------------------------------------------------------------------- contents


def test_parts_become_what_the_template_takes() -> None:
    parts = [{"type": "text", "text": "One"}, {"type": "input_text", "text": "Two"}, "Three"]
    asked = [{"role": "user", "content": parts}]
    assert messages_of(asked)[0]["content"] == "One\nTwo\nThree"
    kept = messages_of(asked, "llama4")[0]["content"]
    assert kept == [{"type": "text", "text": it} for it in ("One", "Two", "Three")]
    only = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
    ready, _ = prepared(Conversation([USER]), traits_of(only))
    assert ready.messages == [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]


def test_parts_that_are_no_text() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    asked = [{"role": "user", "content": [image]}]
    assert messages_of(asked, "mistral_small")[0]["content"] == [image]
    with pytest.raises(TemplateError, match="no parts of the type 'image_url'"):
        messages_of(asked)
    refused = [{"type": "refusal", "refusal": "No."}]
    assert text_of(refused) == "No."
    for broken in ([{"type": "text"}], [{"text": "a"}], [7], [{"type": "text", "text": None}]):
        with pytest.raises(TemplateError, match="part"):
            messages_of([{"role": "user", "content": broken}])


# ---------------------------------------------------------------------- instructions


def developer(said: str) -> dict[str, str]:
    return {"role": "developer", "content": said}


def system(said: str) -> dict[str, str]:
    return {"role": "system", "content": said}


def test_a_developer_is_the_system_unless_the_template_knows_one() -> None:
    assert messages_of([developer("A"), USER]) == [system("A"), USER]
    assert messages_of([developer("A"), USER], "gpt_oss") == [developer("A"), USER]
    assert "# Instructions\n\nA\n" in text([developer("A"), USER], "gpt_oss")


def test_instructions_at_the_beginning_are_joined() -> None:
    assert messages_of([system("A"), developer("B"), USER]) == [system("A\n\nB"), USER]
    assert messages_of([developer("A"), developer("B"), USER]) == [system("A\n\nB"), USER]
    assert messages_of([system("A"), system("B"), USER]) == [system("A"), system("B"), USER]
    both = text([system("A"), developer("B"), USER], "gpt_oss")
    assert "# Instructions\n\nA\n\nB\n" in both
    parts = {"role": "developer", "content": [{"type": "text", "text": "B"}]}
    assert messages_of([system("A"), parts, USER]) == [system("A\n\nB"), USER]


def test_later_instructions_keep_their_place_if_the_template_shows_them_there() -> None:
    asked = [USER, {"role": "assistant", "content": "b"}, developer("B"), USER]
    assert [it["role"] for it in messages_of(asked)] == ["user", "assistant", "system", "user"]
    assert messages_of([system("A"), *asked], "smollm3")[0] == system("A\n\nB")
    assert messages_of(asked, "smollm3")[0] == system("B")


def test_many_later_instructions_are_joined_once(monkeypatch: pytest.MonkeyPatch) -> None:
    n_read, read = 0, conversation.text_of

    def counting(content: Any) -> str:
        nonlocal n_read
        n_read += len(text := read(content))
        return text

    monkeypatch.setattr(conversation, "text_of", counting)
    asked = [USER, *(system("x" * 10) for _ in range(1000))]
    first, *rest = messages_of(asked, "smollm3")
    assert first == system("\n\n".join(["x" * 10] * 1000))
    assert rest == [USER]
    assert n_read == 10_000


def test_templates_without_a_system_role_have_instructions_in_the_first_turn() -> None:
    asked = [system("A"), developer("B"), USER, {"role": "assistant", "content": "b"}, USER]
    [first, *rest] = messages_of(asked, "gemma2")
    assert first == {"role": "user", "content": "A\n\nB\n\nHello"}
    assert [it["role"] for it in rest] == ["assistant", "user"]
    assert messages_of([system("A")], "gemma2") == [{"role": "user", "content": "A"}]
    assert messages_of([system(""), USER], "gemma2") == [USER]


@pytest.mark.parametrize("template", [*FORMS, "chatml"])
def test_instructions_are_never_dropped(template: str) -> None:
    turns = [USER, {"role": "assistant", "content": "b"}]
    for asked in (
        [system("qaq"), developer("qbq"), USER],
        [developer("qaq"), *turns, system("qbq"), USER],
        [system("qaq"), *turns, developer("qbq"), USER],
    ):
        shown = text(asked, template)
        assert "qaq" in shown, asked
        assert "qbq" in shown, asked
        assert "Hello" in shown, asked


# ---------------------------------------------------------------------- warnings


def test_warnings_say_what_is_left_out() -> None:
    turn = {"role": "assistant", "content": "", "tool_calls": [call("{}")]}
    result = {"role": "tool", "tool_call_id": "call_1", "content": "1"}
    assert warnings("chatml", [USER, turn, result], tools=[TOOL]) == ()
    found = warnings("zephyr", [USER, turn, result], tools=[TOOL])
    assert [it.partition(":")[0] for it in found] == [
        "The model's chat template leaves out tools",
        "The model's chat template leaves out messages of the role 'tool'",
        "The model's chat template leaves out the calls of tools in past answers.",
    ]
    [beside] = warnings("deepseek_r1", [USER, {**turn, "content": "text"}])
    assert "that have text as well" in beside
    assert warnings("zephyr", [USER, {"role": "critic" * 20, "content": "x"}])[0].count("c") < 40
    assert warnings("zephyr", [system("A"), USER]) == ()


def test_variables_that_the_template_does_not_read() -> None:
    given = {"enable_thinking": False, "volume": 11}
    [found] = warnings("qwen3", [USER], variables=given)
    assert found == "The model's chat template reads no variable 'volume'."


# ---------------------------------------------------------------------- what is refused


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "message",
    [
        {"content": "a"},
        {"role": None, "content": "a"},
        {"role": 7, "content": "a"},
        "text",
        None,
        {"role": "user", "content": 7},
        {"role": "user", "content": {"type": "text"}},
        {"role": "user", "content": [b"bytes"]},
        {"role": "user", "content": "a", "extra": object()},
        {"role": "user", "content": "a", "extra": nested(MAX_DEPTH + 1)},
        {"role": "user", "content": "a", "extra": nested(100_000)},
        {"role": "assistant", "tool_calls": "add"},
        {"role": "assistant", "tool_calls": ["add"]},
        {"role": "assistant", "tool_calls": {"id": "a"}},
    ],
)
def test_messages_that_are_none(message: Any) -> None:
    with pytest.raises(TemplateError):
        messages_of([USER, message])


def test_tools_that_are_no_json() -> None:
    with pytest.raises(TemplateError, match="a tool is nested more than 100 deep"):
        prepared(Conversation([USER], [{"a": nested(200)}]), TRAITS["chatml"])
    with pytest.raises(TemplateError, match="a tool has a set"):
        prepared(Conversation([USER], [{"a": {1}}]), TRAITS["chatml"])


@pytest.mark.parametrize(
    "variables",
    [
        {"messages": []},
        {"tools": []},
        {"bos_token": ""},
        {"eos_token": ""},
        {"add_generation_prompt": False},
        {"raise_exception": "x"},
        {"strftime_now": "x"},
        {"namespace": "x"},
        {"range": 1},
        {" budget": 1},
        {" clock": 1},
        {"_x": 1},
        {"a b": 1},
        {"": 1},
        {"x" * 65: 1},
        {7: 1},
        {f"x{n}": n for n in range(65)},
        {"x": object()},
        {"x": nested(101)},
    ],
)
def test_variables_that_cannot_be(variables: Mapping[Any, Any]) -> None:
    with pytest.raises(SettingsError, match="variable"):
        prepared(Conversation([USER], None, variables), TRAITS["chatml"])


@pytest.mark.slow
def test_calls_of_any_shape_end_in_a_text_or_a_typed_error() -> None:
    shapes: list[Any] = [
        {},
        {"function": None},
        {"function": "add"},
        {"function": {}},
        {"function": {"name": None, "arguments": []}},
        {"id": 7, "function": {"name": "add", "arguments": 7}},
        {"function": {"name": "add", "arguments": "[" * 100_000}},
        {"function": {"name": "add", "arguments": '{"a": "\\ud800"}'}},
        {"function": {"name": "add", "arguments": {"a": float("nan")}}},
    ]
    n_texts = 0
    for template in TRAITS:
        for shape in shapes:
            asked = [USER, {"role": "assistant", "content": "", "tool_calls": [shape]}]
            try:
                n_texts += isinstance(text(asked, template), str)
            except IsthmusError:
                continue
    assert n_texts > len(TRAITS)


def test_check_is_called_for_each_message() -> None:
    calls = []

    def check() -> None:
        calls.append(None)
        if len(calls) == 3:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        prepared(Conversation([USER] * 10), TRAITS["chatml"], check)
