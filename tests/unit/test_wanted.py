"""What a request wants, before any model sees it."""

from __future__ import annotations

import pytest

from isthmus.abi import GrammarKind
from isthmus.errors import SettingsError
from isthmus.server.generation.wanted import MAX_STOPS, Tool, ToolChoice, Wanted

MESSAGES = ({"role": "user", "content": "hello"},)
WEATHER = Tool("weather", "tells the weather", {"type": "object", "properties": {}})


def test_a_tool_as_templates_take_it() -> None:
    assert WEATHER.as_dict() == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "tells the weather",
            "parameters": {"type": "object", "properties": {}},
        },
    }
    assert Tool("now").as_dict() == {"type": "function", "function": {"name": "now"}}


def test_without_a_choice_no_tool_is_offered() -> None:
    assert Wanted(MESSAGES, tools=(WEATHER,)).offered == (WEATHER,)
    assert Wanted(MESSAGES, tools=(WEATHER,), tool_choice=ToolChoice.NONE).offered == ()


@pytest.mark.parametrize("stop", [("",), ("a", ""), ("a",) * (MAX_STOPS + 1)])
def test_impossible_stops(stop: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError, match="stop"):
        Wanted(MESSAGES, stop=stop)


@pytest.mark.parametrize(
    ("tools", "tool", "grammar"),
    [
        ((), None, None),
        ((WEATHER,), "time", None),
        ((WEATHER,), None, (GrammarKind.GBNF, 'root ::= "a"')),
    ],
)
def test_a_required_tool_that_cannot_be_called(
    tools: tuple[Tool, ...], tool: str | None, grammar: tuple[GrammarKind, str] | None
) -> None:
    with pytest.raises(SettingsError):
        Wanted(MESSAGES, tools=tools, tool_choice=ToolChoice.REQUIRED, tool=tool, grammar=grammar)
