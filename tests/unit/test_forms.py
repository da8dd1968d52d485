"""Parsers of tool calls and reasoning: what they find, however a text is cut."""

from __future__ import annotations

import json

import pytest

from isthmus.model.forms import (
    PLAIN,
    Arguments,
    CallBegins,
    CallEnds,
    Form,
    Reasoning,
    Text,
    Thought,
    joined,
    opens_thought,
    recognised,
)
from isthmus.model.forms.call_forms import CALLS
from isthmus.model.forms.thought_forms import THOUGHTS
from tests.unit.forms_text import BARE, FORMS, TOOLS, WRITERS, called, in_pieces, whole

THINK = Thought("<think>", "</think>")
HERMES = Form("hermes", FORMS["hermes"].calls, THINK)
ARGUMENTS = [
    {"city": "Oslo"},
    {"city": "Ås, \"Årnes\" {a} [b] 'c' \\ é 😀 日本", "days": -3, "exact": True},
    {"city": "two\nlines\tand\n\n", "share": 0.25, "tags": ["a", "", "}]"], "note": None},
    {"city": "", "where": {"lat": 59.9, "name": "x, y: z"}, "tags": [], "exact": False},
]
ALL = pytest.mark.parametrize("name", sorted(WRITERS))


def test_every_form_of_the_table_has_a_writer() -> None:
    assert set(WRITERS) == {it.name for it in CALLS}


@pytest.mark.parametrize("row", CALLS, ids=lambda it: it.name)
def test_the_example_of_a_form_is_a_call(row) -> None:
    tools = [{"name": "f", "parameters": {"properties": {"k": {"type": "string"}}}}]
    events = whole(FORMS[row.name].parser(tools), row.example)
    assert events == [CallBegins(0, "f"), Arguments(0, '{"k": "v"}'), CallEnds(0)]


# ---------------------------------------------------------------------------------- calls


@ALL
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=range(len(ARGUMENTS)))
def test_a_call_has_its_arguments(name: str, arguments: dict) -> None:
    text = WRITERS[name]([("weather", arguments)])
    events = whole(FORMS[name].parser(TOOLS), text)
    assert called(events) == [("weather", arguments)]
    assert len(events) == 3
    assert in_pieces(FORMS[name].parser(TOOLS), text) == events


@ALL
def test_a_call_is_the_same_wherever_its_text_is_cut(name: str) -> None:
    text = f"{WRITERS[name]([('weather', ARGUMENTS[1])])} so"
    events = whole(FORMS[name].parser(TOOLS), text)
    assert called(events) == [("weather", ARGUMENTS[1])]
    for cut in range(len(text) + 1):
        assert in_pieces(FORMS[name].parser(TOOLS), (text[:cut], text[cut:])) == events


@ALL
def test_several_calls_between_texts(name: str) -> None:
    calls = [("weather", ARGUMENTS[1]), ("no_arguments", {}), ("get_time-2", ARGUMENTS[3])]
    if name in ("lfm2", "olmo3", "gemma3", "llama4", "python-list"):
        calls[2] = ("weather", ARGUMENTS[3])
    before = "" if name in BARE else "I look <it> up: {1} [x]\n\n"
    text = f"{before}{WRITERS[name](calls)}\nand that is it."
    events = whole(FORMS[name].parser(TOOLS), text)
    assert called(events) == calls
    assert [it for it in events if isinstance(it, Text)] == [
        *([Text("I look <it> up: {1} [x]")] if before else []),
        Text("and that is it."),
    ]
    for size in (1, 2, 3, 7, 20):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        assert in_pieces(FORMS[name].parser(TOOLS), pieces) == events


@ALL
def test_what_is_cut_off_ends_with_what_came(name: str) -> None:
    text = WRITERS[name]([("weather", ARGUMENTS[1])])
    full = next(it for it in whole(FORMS[name].parser(TOOLS), text) if isinstance(it, Arguments))
    n_begun = 0
    for cut in range(len(text)):
        events = whole(FORMS[name].parser(TOOLS), text[:cut])
        if events and isinstance(events[0], CallBegins):
            n_begun += 1
            assert isinstance(events[-1], CallEnds)
            said = "".join(it.text for it in events if isinstance(it, Arguments))
            # what was cut within a number, an escape or an end marker may look otherwise
            assert full.text.startswith(said[:-20])
            assert events[-1].whole == (said == full.text) or not events[-1].whole
        else:
            assert "".join(it.text for it in events) == text[:cut]
    assert n_begun > 20


@ALL
def test_a_function_that_nobody_knows_is_text(name: str) -> None:
    text = f"{WRITERS[name]([('other', {'city': 'x'})])} so"
    assert whole(FORMS[name].parser(TOOLS), text) == [Text(text)]
    assert in_pieces(FORMS[name].parser(TOOLS), text) == [Text(text)]


@ALL
def test_without_tools_every_call_is_text(name: str) -> None:
    text = WRITERS[name]([("weather", {"city": "x"})])
    assert whole(FORMS[name].parser([]), text) == [Text(text)]


def test_without_tools_channels_and_thoughts_are_told_apart_nevertheless() -> None:
    text = "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>final<|message|>So"
    form = recognised("<|start|><|channel|>analysis<|message|>")
    assert whole(form.parser([]), text) == [Reasoning("Hm"), Text("So")]
    assert whole(HERMES.parser([]), "<think>Hm</think>So") == [Reasoning("Hm"), Text("So")]


def test_what_may_begin_a_call_and_does_not_is_text_after_a_thought() -> None:
    form = recognised("<|start|><|channel|>analysis<|message|>")
    text = "<|channel|>analysis<|message|>Hm<|end|> to be"
    assert in_pieces(form.parser(TOOLS), text) == [Reasoning("Hm"), Text("to be")]
    llama = Form("", FORMS["llama3"].calls, THINK)
    for rest in ("[", "{", '{"a": 1}', "[x"):
        assert whole(llama.parser(TOOLS), f"<think>Hm</think> {rest}") == [
            Reasoning("Hm"),
            Text(rest),
        ]


def test_a_model_whose_template_tells_no_form_may_call_as_hermes_does() -> None:
    text = f"Well. {WRITERS['hermes']([('weather', {'city': 'x'})])}"
    assert called(whole(PLAIN.parser(TOOLS), text)) == [("weather", {"city": "x"})]
    assert whole(PLAIN.parser([]), text) == [Text(text)]


@ALL
def test_if_nobody_knows_the_tools_any_function_is_called(name: str) -> None:
    arguments = {"city": "x", "days": 3, "tags": ["a"]}
    events = whole(FORMS[name].parser(None), WRITERS[name]([("other", arguments)]))
    assert called(events) == [("other", arguments)]


@ALL
def test_a_good_call_after_one_that_is_none(name: str) -> None:
    calls = [("other", {"city": "x"}), ("weather", {"city": "y"})]
    events = whole(FORMS[name].parser(TOOLS), WRITERS[name](calls))
    assert called(events) == calls[1:]
    assert isinstance(events[0], Text)
    assert "other" in events[0].text


def test_arguments_come_while_they_are_written() -> None:
    parser = HERMES.parser(TOOLS)
    assert parser.feed('<tool_call>{"name": "weather", "arguments": {"city": "Os') == [
        CallBegins(0, "weather"),
        Arguments(0, '{"city": "Os'),
    ]
    assert parser.feed("l") == [Arguments(0, "l")]


def test_text_comes_at_once() -> None:
    parser = HERMES.parser(TOOLS)
    assert parser.feed("a < b") == [Text("a < b")]
    assert parser.feed(" <tool") == []
    assert parser.feed("s> c ") == [Text(" <tools> c")]
    assert parser.feed("d") == [Text(" d")]
    assert parser.end() == []


JSON_ODDITIES = [
    ('{"name": "weather", "arguments": {"city": "a", "exact": True, "note": None,}}',
     {"city": "a", "exact": True, "note": None}),
    ('{"arguments": {"city": "a"}, "name": "weather"}', {"city": "a"}),
    ('{"name": "weather", "arguments": "{\\"city\\": \\"a\\\\n\\"}"}', {"city": "a\n"}),
    ('{"name": "weather", "arguments": null}', {}),
    ('{"name": "weather"}', {}),
    ('{"id": "x", "type": "function", "name": "functions.weather", "parameters": {"city": "a"}}',
     {"city": "a"}),
    ('{"name": "weather", "arguments": {"city": "a\nb", "share": 1e-3}}',
     {"city": "a\nb", "share": 1e-3}),
    (r'{"name": "weather", "arguments": {"city": "\u00e9\ud83d\ude00\/ \d \'"}}',
     {"city": "é😀/ \\d '"}),
    ('{"function": "weather", "arguments": {"days": +5, "share": .5}}', {"days": 5, "share": 0.5}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "arguments"), JSON_ODDITIES, ids=range(len(JSON_ODDITIES)))
def test_json_as_small_models_write_it(text: str, arguments: dict) -> None:
    text = f"<tool_call>{text}</tool_call>"
    for pieces in ((text,), text):
        events = in_pieces(HERMES.parser(TOOLS), pieces)
        assert called(events) == [("weather", arguments)]
        assert len(events) == 3


BROKEN = [
    "<tool_call>",
    "<tool_call>\n",
    '<tool_call>{"name": ["weather"]}',
    "<tool_call> no <tool_call",
    '<tool_call>{"arguments": {"city": 1}}</tool_call>',
    '<tool_call>{"arguments": {"city": oops}, "name": "weather"}</tool_call>',
    '<tool_call>{"name": "weather", "arguments": ["a"]}</tool_call>',
    '<tool_call>[{"name": "x"}, 5]</tool_call>',
    "</tool_call> </think> {}",
]


@pytest.mark.parametrize("text", BROKEN)
def test_what_looks_like_a_call_and_is_none_is_text(text: str) -> None:
    form = Form("", FORMS["hermes"].calls)
    tools = TOOLS if 'arguments": [' not in text else TOOLS[2:]
    for pieces in ((text,), text):
        assert in_pieces(form.parser(tools), pieces) == [Text(text)]


def test_arguments_that_break_off_are_followed_by_the_rest_as_text() -> None:
    text = '<tool_call>{"name": "weather", "arguments": {"city": "a" oops}}</tool_call>'
    assert whole(HERMES.parser(TOOLS), text) == [
        CallBegins(0, "weather"),
        Arguments(0, '{"city": "a"'),
        CallEnds(0, whole=False),
        Text("oops}}</tool_call>"),
    ]


def test_brackets_within_brackets_end_at_a_depth_that_parsers_take() -> None:
    text = '<tool_call>{"name": "weather", "arguments": {"tags": ' + "[" * 100_000
    events = whole(HERMES.parser(TOOLS), text)
    assert events[0] == CallBegins(0, "weather")
    assert events[2] == CallEnds(0, whole=False)
    assert sum(len(it.text) for it in events if isinstance(it, (Text, Arguments))) > 99_000


def test_calls_of_llama_in_its_other_notations() -> None:
    parser = FORMS["llama3"].parser
    for text in (
        '<|python_tag|>{"name": "weather", "parameters": {"city": "a"}}',
        '<|python_tag|>weather.call(city="a")',
        '[weather(city="a")]',
        '\n{"type": "function", "name": "weather", "parameters": {"city": "a"}}',
    ):
        assert called(whole(parser(TOOLS), text)) == [("weather", {"city": "a"})]
    for text in ('{"city": "a', "[1, 2]", "[weather]", "<|python_tag|>print('a')", "{}", "{"):
        assert whole(parser(TOOLS), text) == [Text(text)]


def test_python_by_place_and_with_all_its_quotes() -> None:
    text = (
        "```tool_code\nprint(weather('a\\'\\x41', 5, share=1_0.5e1, tags=('x', \"y\"),"
        ' note=None))\nweather("""q"u""", exact=True,)\n```'
    )
    assert called(whole(FORMS["gemma3"].parser(TOOLS), text)) == [
        ("weather", {"city": "a'A", "days": 5, "share": 105.0, "tags": ["x", "y"], "note": None}),
        ("weather", {"city": 'q"u', "exact": True}),
    ]


def test_arguments_that_are_no_object_are_not_whole() -> None:
    for said in ('"hello"', '"[1]"', '"5"', '""'):
        events = whole(HERMES.parser(TOOLS), f'<tool_call>{{"name": "weather", "arguments": {said}')
        assert events == [CallBegins(0, "weather"), Arguments(0, said), CallEnds(0, whole=False)]


def test_json_between_the_markers_of_elements() -> None:
    for name in ("qwen3-coder", "seed", "minimax-m2"):
        form = FORMS[name]
        begin, end = form.calls.begins[0], form.calls.section_ends
        text = f'{begin}\n{{"name": "weather", "arguments": {{"city": "a"}}}}\n{end} so'
        events = in_pieces(form.parser(TOOLS), text)
        assert called(events) == [("weather", {"city": "a"})]
        assert events[3:] == [Text("so")]


def test_an_end_marker_within_a_value_is_a_part_of_it() -> None:
    arguments = {"city": "a</parameter> b </function></parameter>\n</x>", "days": 2}
    for name in ("minimax-m2", "seed"):
        text = WRITERS[name]([("weather", arguments)])
        assert called(whole(FORMS[name].parser(TOOLS), text)) == [("weather", arguments)]


def test_values_of_elements_have_the_types_of_the_schema() -> None:
    properties = {
        "text": {"type": "string"},
        "number": {"type": "number"},
        "maybe": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
        "one": {"$ref": "#/$defs/one"},
        "kind": {"enum": ["1", "2"]},
        "off": {"type": "boolean"},
        "free": {},
        "bad": {"type": "integer"},
    }
    schema = {"properties": properties, "$defs": {"one": {"type": "array"}}}
    said = {
        "text": "5", "number": "5", "maybe": "5", "one": "[1]", "kind": "1", "off": "False",
        "free": '{"a": 1}', "bad": "five", "other": "null",
    }  # fmt: skip
    text = WRITERS["qwen3-coder"]([("f", said)])
    events = whole(FORMS["qwen3-coder"].parser([{"name": "f", "parameters": schema}]), text)
    assert called(events)[0][1] == {
        "text": "5", "number": 5, "maybe": 5, "one": [1], "kind": "1", "off": False,
        "free": {"a": 1}, "bad": "five", "other": None,
    }  # fmt: skip


def test_numbers_that_json_does_not_have_stay_texts() -> None:
    for word in ("NaN", "1e999", "-Infinity", "9" * 5000, "[" * 5000):
        text = WRITERS["glm"]([("weather", {"share": word})])
        assert called(whole(FORMS["glm"].parser(TOOLS), text)) == [("weather", {"share": word})]


# ---------------------------------------------------------------------------------- thoughts


@pytest.mark.parametrize("row", THOUGHTS, ids=lambda it: it.name)
def test_a_thought_comes_apart_from_the_text(row) -> None:
    calls = FORMS["harmony"].calls if row.name == "harmony" else FORMS["hermes"].calls
    form, thought = Form("", calls, row.thought), row.thought
    inside, text = "Hm, <b> is\n\n{odd} </", "So: é."
    answer = f"{thought.open_text}{inside}{thought.close_text}"
    answer += f"<|channel|>final<|message|>{text}" if row.name == "harmony" else text
    events = [Reasoning(inside), Text(text)]
    assert whole(form.parser(TOOLS), answer) == events
    for cut in range(len(answer) + 1):
        assert in_pieces(form.parser(TOOLS), (answer[:cut], answer[cut:])) == events
    rest = answer.removeprefix(thought.open_text)
    assert in_pieces(form.parser(TOOLS, in_thought=True), rest) == events
    assert opens_thought(form, f"user\nassistant\n{thought.open_text}")
    assert not opens_thought(form, f"assistant\n{thought.open_text}{thought.close_text}")
    assert not opens_thought(form, f"user\n{thought.open_text} <|end|>assistant\n")
    assert {thought.begins, thought.ends} <= form.controls


def test_a_thought_before_and_between_calls() -> None:
    call = '<tool_call>{"name": "weather", "arguments": {"city": "a"}}</tool_call>'
    text = f"\n<think>\none\n</think>\n\n{call}\n<think>two <tool_call></think>{call}<think> end"
    events = whole(HERMES.parser(TOOLS), text)
    assert [it for it in events if isinstance(it, Reasoning)] == [
        Reasoning("one"),
        Reasoning("two <tool_call>"),
        Reasoning("end"),
    ]
    assert len(called(events)) == 2
    assert in_pieces(HERMES.parser(TOOLS), text) == events


def test_a_thought_within_a_text_is_text_if_anybody_can_write_it() -> None:
    text = "The tag <think> opens a thought, </think> closes it."
    assert whole(HERMES.parser(TOOLS), text) == [Text(text)]


def test_an_empty_thought_says_nothing() -> None:
    assert whole(HERMES.parser(TOOLS), "<think>\n\n</think>\n\nYes ") == [Text("Yes ")]


def test_a_form_without_thoughts_cannot_be_in_one() -> None:
    assert whole(PLAIN.parser(TOOLS, in_thought=True), "\nx\n") == [Text("\nx\n")]


def test_what_is_around_a_text_is_no_part_of_it() -> None:
    form = recognised("<think>{{ x }}</think><answer>{{ y }}</answer><tool_calls>")
    text = "<think>\na\n</think>\n<answer>\nSo <answer> it is\n</answer>"
    for pieces in ((text,), text):
        events = in_pieces(form.parser(TOOLS), pieces)
        assert events == [Reasoning("a"), Text("So <answer> it is")]


def test_harmony_has_a_channel_for_each_kind() -> None:
    form = recognised("<|start|><|channel|>analysis<|message|>")
    text = (
        "<|channel|>analysis<|message|>Look it up.<|end|>"
        "<|start|>assistant<|channel|>commentary<|message|>One moment.<|end|>"
        "<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>"
        '{"city": "a"}<|call|>'
        "<|start|>assistant<|channel|>analysis to=python<|message|>print(1)<|call|>"
        "<|start|>assistant<|channel|>final<|message|>It <|rains|>.<|return|>"
    )
    events = [
        Reasoning("Look it up."),
        Text("One moment."),
        CallBegins(0, "weather"),
        Arguments(0, '{"city": "a"}'),
        CallEnds(0),
        Text("<|start|>assistant<|channel|>analysis to=python<|message|>print(1)"),
        Text("It <|rains|>."),
    ]
    assert [it for it in events if not isinstance(it, Text)] == [
        it for it in whole(form.parser(TOOLS), text) if not isinstance(it, Text)
    ]
    assert in_pieces(form.parser(TOOLS), text) == whole(form.parser(TOOLS), text)
    told = ' to=functions.weather<|channel|>commentary json<|message|>{"city": "a"}'
    assert called(in_pieces(form.parser(TOOLS), told)) == [("weather", {"city": "a"})]


# ---------------------------------------------------------------------------------- the rest


def test_an_answer_that_is_forced_may_be_bare_json() -> None:
    one = '{"name": "weather", "arguments": {"city": "a"}}'
    for name in sorted(WRITERS):
        events = in_pieces(FORMS[name].parser(TOOLS, forced=True), one)
        assert called(events) == [("weather", {"city": "a"})], name
        events = whole(FORMS[name].parser(TOOLS, forced=True), f"[{one}, {one}]")
        assert len(called(events)) == 2, name
        own = WRITERS[name]([("weather", {"city": "a"})])
        assert called(whole(FORMS[name].parser(TOOLS, forced=True), own)), name


def test_joined_events_are_as_few_as_can_be() -> None:
    events = [Text("a"), Text("b"), Reasoning("c"), Arguments(0, "d"), Arguments(0, "e")]
    assert joined([*events, CallEnds(0), CallEnds(0)]) == [
        Text("ab"), Reasoning("c"), Arguments(0, "de"), CallEnds(0), CallEnds(0),
    ]  # fmt: skip
    assert joined([]) == []


def test_what_comes_after_the_end_is_ignored() -> None:
    parser = HERMES.parser(TOOLS)
    assert parser.feed("a") == [Text("a")]
    assert parser.end() == []
    assert parser.feed("b") == parser.end() == []


def test_arguments_are_laid_out_as_json_dumps_does() -> None:
    arguments = {"city": "é", "tags": ["a", "b"], "where": {"lat": 1.5}}
    text = json.dumps({"name": "weather", "arguments": arguments}, indent=4)
    events = whole(HERMES.parser(TOOLS), f"<tool_call>{text}</tool_call>")
    assert events[1] == Arguments(0, json.dumps(arguments, ensure_ascii=False))
