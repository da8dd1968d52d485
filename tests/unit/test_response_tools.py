"""Tools of a request, and which of them may or must be called."""

from __future__ import annotations

from typing import Any

import pytest

from isthmus.abi import GrammarKind
from isthmus.errors import SettingsError
from isthmus.server.generation.wanted import ToolChoice
from isthmus.server.http.errors import HttpError
from isthmus.server.http.support import Support
from isthmus.server.responses.arguments import InputReader
from isthmus.server.responses.fields import TOOLS
from isthmus.server.responses.items import items_of
from isthmus.server.responses.requests import Reasoning, ResponseRequest, TextConfig
from isthmus.server.responses.tools import Offer, Origin, choice_of, offer_of
from isthmus.server.responses.translate import plan_of, require_sensible

F = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
G = {"type": "function", "name": "g"}
LARK = {"type": "grammar", "syntax": "lark", "definition": 'start: "a"'}
PATCH = {"type": "custom", "name": "patch", "description": "edits", "format": LARK}
SPACE = {"type": "namespace", "name": "n", "description": "", "tools": [F, PATCH]}


def test_functions_namespaces_and_custom_tools() -> None:
    offer = offer_of([F, {"type": "custom", "name": "run"}, SPACE])
    assert list(offer.tools) == ["f", "run", "n__f", "n__patch"]
    assert offer.tools["f"].parameters == {"type": "object"}
    assert offer.tools["run"].parameters == {
        "type": "object",
        "properties": {"input": {"type": "string"}},
        "required": ["input"],
        "additionalProperties": False,
    }
    assert offer.origin("n__f") == Origin("f", "n")
    grammar = (GrammarKind.LARK, 'start: "a"')
    assert offer.origin("n__patch") == Origin("patch", "n", True, grammar)
    assert 'start: "a"' in (offer.tools["n__patch"].description or "")
    assert offer.warnings == ()


@pytest.mark.parametrize(
    "kind", [name for name, it in TOOLS.items() if it.support is Support.LEFT_OUT]
)
def test_what_a_server_would_run_is_left_out_with_a_warning(kind: str) -> None:
    offer = offer_of([F, {"type": kind}, {"type": f"{kind}_2025_08_26"}])
    assert list(offer.tools) == ["f"]
    assert len(offer.warnings) == 1
    assert all(kind in said for said in offer.warnings)


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ([{"type": "oracle"}], "tools[0]"),
        ([{}], "tools[0]"),
        ([F, {"type": "function"}], "tools[1].name"),
        ([{"type": "function", "name": ""}], "tools[0].name"),
        ([F, F], "tools[1].name"),
        ([{"type": "custom", "name": "x", "format": {"type": "grammar"}}], "tools[0].format"),
        ([{"type": "namespace", "name": "n", "tools": [SPACE]}], "tools[0].tools[0]"),
        ([{"type": "function", "name": "f", "parameters": []}], "tools[0].parameters"),
    ],
)
def test_what_is_no_tool_is_named(tools: list[dict[str, Any]], param: str) -> None:
    with pytest.raises(HttpError) as refused:
        offer_of(tools)
    assert (refused.value.status, refused.value.param) == (400, param)


ALLOWED = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "g"}]}


@pytest.mark.parametrize(
    ("given", "how", "told", "name"),
    [
        (None, ToolChoice.AUTO, "f g", None),
        ("auto", ToolChoice.AUTO, "f g", None),
        ("none", ToolChoice.NONE, "f g", None),
        ("required", ToolChoice.REQUIRED, "f g", None),
        ({"type": "function", "name": "g"}, ToolChoice.REQUIRED, "f g", "g"),
        (ALLOWED, ToolChoice.AUTO, "g", None),
        ({**ALLOWED, "mode": "required"}, ToolChoice.REQUIRED, "g", None),
        (
            {**ALLOWED, "tools": [*ALLOWED["tools"], {"type": "web_search"}]},
            ToolChoice.AUTO,
            "g",
            None,
        ),
    ],
)
def test_choices(given: Any, how: ToolChoice, told: str, name: str | None) -> None:
    choice = choice_of(offer_of([F, G]), given)
    assert (choice.how, " ".join(it.name for it in choice.tools)) == (how, told)
    assert (choice.name, choice.input_of) == (name, None)


@pytest.mark.parametrize(
    "given",
    [
        "perhaps",
        {"type": "web_search"},
        {"type": "function"},
        {"type": "function", "name": "h"},
        {**ALLOWED, "mode": "never"},
        {**ALLOWED, "tools": [3]},
        {**ALLOWED, "tools": [{"type": "function", "name": "h"}]},
        {**ALLOWED, "tools": None},
    ],
)
def test_choices_that_are_none(given: Any) -> None:
    with pytest.raises(HttpError) as refused:
        choice_of(offer_of([F, G]), given)
    assert (refused.value.status, refused.value.param) == (400, "tool_choice")


def test_a_call_cannot_be_required_without_tools() -> None:
    with pytest.raises(HttpError):
        choice_of(Offer(), "required")


def test_the_answer_is_the_input_of_a_custom_tool_that_is_required() -> None:
    asked = ResponseRequest(
        model="m",
        input="q",
        tools=[F, PATCH],
        tool_choice={"type": "custom", "name": "patch"},
    )
    plan = plan_of(asked, items_of("q"))
    assert plan.input_of == plan.offer.origins["patch"]
    assert plan.wanted.grammar == (GrammarKind.LARK, 'start: "a"')
    assert plan.wanted.tool_choice is ToolChoice.AUTO
    asked.grammar = "root ::= [a]"
    with pytest.raises(HttpError):
        plan_of(asked, [])


def test_a_format_is_one_of_text() -> None:
    asked = ResponseRequest(
        model="m", tools=[F, PATCH], text=TextConfig(format={"type": "json_object"})
    )
    plan = plan_of(asked, [])
    assert plan.wanted.grammar == (GrammarKind.JSON_SCHEMA, '{"type": "object"}')
    assert "no tool is called" in plan.warnings[0]
    for name, expected in (("f", None), ("patch", (GrammarKind.LARK, 'start: "a"'))):
        kind = "function" if name == "f" else "custom"
        asked.tool_choice = {"type": kind, "name": name}
        plan = plan_of(asked, [])
        assert plan.wanted.grammar == expected
        assert plan.warnings == ()


def test_wishes_become_what_is_wanted() -> None:
    asked = ResponseRequest(
        model="m",
        instructions="be kind",
        tools=[F],
        parallel_tool_calls=False,
        include=["message.output_text.logprobs"],
        top_logprobs=3,
        max_output_tokens=7,
        temperature=0,
        top_p=0.5,
        seed=11,
        truncation="auto",
        reasoning=Reasoning(effort="none"),
    )
    brought = {"type": "additional_tools", "tools": [G]}
    wanted = plan_of(asked, items_of([{"role": "user", "content": "q"}, brought])).wanted
    assert [it["role"] for it in wanted.messages] == ["system", "user"]
    assert [it.name for it in wanted.tools] == ["f", "g"]
    assert (wanted.parallel, wanted.logprobs, wanted.max_tokens) == (False, 3, 7)
    sampling = wanted.sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (0, 0.5, 11)
    assert wanted.truncate
    assert wanted.variables == {"reasoning_effort": "none", "enable_thinking": False}


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, '{"type": "object"}'),
        ({"type": "json_schema", "name": "n", "schema": {"type": "array"}}, '{"type": "array"}'),
    ],
)
def test_formats(form: dict[str, Any] | None, expected: str | None) -> None:
    asked = ResponseRequest(model="m", text=TextConfig(format=form))
    grammar = plan_of(asked, []).wanted.grammar
    assert grammar == (None if expected is None else (GrammarKind.JSON_SCHEMA, expected))


@pytest.mark.parametrize("form", [{"type": "xml"}, {"type": "json_schema"}, {"schema": {}}])
def test_formats_that_are_none(form: dict[str, Any]) -> None:
    with pytest.raises(HttpError):
        plan_of(ResponseRequest(model="m", text=TextConfig(format=form)), [])


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"background": True, "store": False}, "background"),
        ({"conversation": "c", "previous_response_id": "r"}, "conversation"),
        ({"conversation": "c", "store": False}, "store"),
        ({"include": ["everything"]}, "include"),
    ],
)
def test_wishes_that_cannot_be_had_together(more: dict[str, Any], param: str) -> None:
    with pytest.raises(HttpError) as refused:
        require_sensible(ResponseRequest(model="m", **more))
    assert refused.value.param == param


def test_a_grammar_and_a_required_call_are_too_much() -> None:
    asked = ResponseRequest(model="m", tools=[F], tool_choice="required", grammar="root ::= [a]")
    with pytest.raises(SettingsError):
        plan_of(asked, [])


# ------------------------------------------------------------------ the input of a custom tool

TEXTS = ["", "a", 'say "hi"\n\t\\ /', "ü 😀 \ud83d\ude00", "{}[],:", "\x00\x1f", "x" * 3000]


@pytest.mark.parametrize("text", TEXTS)
def test_an_input_is_read_in_any_two_parts(text: str) -> None:
    import json

    text = text.encode("utf-16", "surrogatepass").decode("utf-16")
    for ascii_only in (True, False):
        given = f'  {{"input" : {json.dumps(text, ensure_ascii=ascii_only)}}} '
        for cut in range(0, len(given), 1 if len(given) < 200 else 97):
            reader = InputReader()
            told = reader.feed(given[:cut]) + reader.feed(given[cut:])
            whole, rest = reader.end()
            assert (whole, told + rest) == (text, text)


@pytest.mark.parametrize(
    ("given", "whole"),
    [
        ("not json", "not json"),
        ('{"other": 1}', '{"other": 1}'),
        ('{"input": 3}', '{"input": 3}'),
        ('{"a": 1, "input": "x"}', "x"),
        ('{"input": "cut o', "cut o"),
        ('{"input": "half \\ud83d', "half "),
        ('{"input": "lone \\ud83d x"}', "lone \ufffd x"),
        ("[" * 100_000, "[" * 100_000),
        ("", ""),
    ],
)
def test_arguments_that_are_others(given: str, whole: str) -> None:
    reader = InputReader()
    told = "".join(reader.feed(it) for it in given[:5000]) + reader.feed(given[5000:])
    assert reader.end() == (whole, whole[len(told) :])
    whole.encode()
