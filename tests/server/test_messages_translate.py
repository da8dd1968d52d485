"""Requests of Anthropic's API, as what is wanted of a model."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from isthmus.abi import GrammarKind
from isthmus.errors import SettingsError
from isthmus.server.anthropic.requests import CountRequest, MessagesRequest
from isthmus.server.anthropic.translate import translate
from isthmus.server.generation.wanted import Sampling, Tool, ToolChoice, Wanted
from isthmus.server.http.errors import HttpError

HI = {"role": "user", "content": "hi"}
PLAIN = {"model": "m", "max_tokens": 7, "messages": [HI]}
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"name": "weather", "description": "of a city", "input_schema": SCHEMA}
FORMAT = {"type": "json_schema", "schema": SCHEMA}
WANTED = Wanted(messages=(HI,), max_tokens=7)
TOOL = Tool("weather", "of a city", SCHEMA)
THINKS = {"enable_thinking": True, "thinking": True}


def wanted(**more: Any) -> Wanted:
    return translate(msgspec.convert({**PLAIN, **more}, MessagesRequest)).wanted


def with_tools(**choice: Any) -> Wanted:
    return wanted(tools=[WEATHER], **({"tool_choice": choice} if choice else {}))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"temperature": 0}, {"sampling": Sampling(temperature=0)}),
        ({"top_p": 0.5, "top_k": 3}, {"sampling": Sampling(top_p=0.5, top_k=3)}),
        (
            {"seed": 5, "min_p": 0.1, "repeat_penalty": 1.1, "ignore_eos": True},
            {"sampling": Sampling(seed=5, min_p=0.1, repeat_penalty=1.1, ignore_eos=True)},
        ),
        ({"stop_sequences": ["a", "b"]}, {"stop": ("a", "b")}),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 2000}},
            {"thinking": 2000, "variables": THINKS},
        ),
        ({"thinking": {"type": "adaptive"}}, {"variables": THINKS}),
        (
            {"thinking": {"type": "disabled"}},
            {"variables": {"enable_thinking": False, "thinking": False}},
        ),
        ({"output_config": {"effort": "low"}}, {"variables": {"reasoning_effort": "low"}}),
        ({"output_config": {"effort": "max"}}, {"variables": {"reasoning_effort": "high"}}),
        (
            {"output_config": {"format": FORMAT}},
            {"grammar": (GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA))},
        ),
        ({"output_format": FORMAT}, {"grammar": (GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA))}),
        (
            {"metadata": {"user_id": "x"}, "service_tier": "auto", "speed": "fast", "stream": True},
            {},
        ),
        ({"context_management": {"edits": []}}, {}),
        ({"diagnostics": {"previous_message_id": None}}, {}),
        ({"extra_body": {"x": 1}, "cache_control": {"type": "ephemeral"}}, {}),
    ],
)
def test_fields(given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert wanted(**given) == Wanted(**{"messages": (HI,), "max_tokens": 7, **expected})


def test_tools() -> None:
    required, auto = ToolChoice.REQUIRED, ToolChoice.AUTO
    for choice, expected in (
        ({}, (auto, None, True)),
        ({"type": "auto"}, (auto, None, True)),
        ({"type": "auto", "disable_parallel_tool_use": True}, (auto, None, False)),
        ({"type": "any"}, (required, None, True)),
        ({"type": "any", "disable_parallel_tool_use": True}, (required, None, False)),
        ({"type": "tool", "name": "weather"}, (required, "weather", True)),
        ({"type": "none"}, (ToolChoice.NONE, None, True)),
    ):
        told = with_tools(**choice)
        assert (told.tool_choice, told.tool, told.parallel) == expected
        assert told.tools == (TOOL,)
    assert with_tools(type="none").offered == ()
    bare = {"name": "weather", "input_schema": {}, "type": "custom", "strict": True}
    assert wanted(tools=[bare]).tools == (Tool("weather", None, {}, strict=True),)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tools": [WEATHER, WEATHER]}, "two tools have the name 'weather'"),
        ({"tool_choice": {"type": "any"}}, "tool_choice wants a tool"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice wants"),
        ({"tools": [WEATHER], "output_config": {"format": FORMAT}}, "set tool_choice to none"),
        ({"stop_sequences": [""]}, "none of them empty"),
        ({"stop_sequences": ["x"] * 17}, "at most 16"),
        ({"messages": [{"role": "assistant", "content": "so"}]}, "no message to answer"),
    ],
)
def test_what_contradicts_itself(given: dict[str, Any], said: str) -> None:
    with pytest.raises((HttpError, SettingsError), match=said):
        wanted(**given)


def test_a_schema_beside_tools_that_may_not_be_called() -> None:
    none = {"type": "none"}
    assert wanted(tools=[WEATHER], tool_choice=none, output_format=FORMAT).grammar is not None


def test_answers_that_are_begun() -> None:
    begun = {**PLAIN, "messages": [HI, {"role": "assistant", "content": "the "}]}
    told = translate(msgspec.convert(begun, MessagesRequest))
    assert (told.wanted, told.prefill) == (WANTED, "the ")
    forced = {"tools": [WEATHER], "tool_choice": {"type": "any"}}
    for more in (forced, {"output_config": {"format": FORMAT}}):
        with pytest.raises(HttpError, match="not both"):
            translate(msgspec.convert({**begun, **more}, MessagesRequest))


def test_thoughts_can_be_hidden() -> None:
    for display, hides in (("omitted", True), ("summarized", False), (None, False)):
        thinking = {"type": "adaptive", "display": display}
        told = translate(msgspec.convert({**PLAIN, "thinking": thinking}, MessagesRequest))
        assert told.hides_thoughts is hides


def test_requests_that_count() -> None:
    given = {"model": "m", "messages": [HI], "tools": [WEATHER], "thinking": {"type": "adaptive"}}
    told = translate(msgspec.convert(given, CountRequest)).wanted
    assert told == Wanted(messages=(HI,), tools=(TOOL,), variables=THINKS)
