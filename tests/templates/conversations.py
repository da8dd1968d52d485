"""Ten conversations and more, as clients of OpenAI's API write them."""

from __future__ import annotations

import json
from typing import Any

_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'The weather of a place, "now" & <here>.',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Its name: é, 北京"},
                "unit": {"type": "string", "enum": ["c", "f"], "default": "c"},
                "days": {"type": ["integer", "null"]},
                "tags": {"type": "array", "items": {"type": "string"}},
                "where": {"type": "object", "properties": {"lat": {"type": "number"}}},
            },
            "required": ["city"],
        },
    },
}
_ADD = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {
        "type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}}},
}  # fmt: skip


def _call(number: int, name: str, **arguments: Any) -> dict[str, Any]:
    text = json.dumps(arguments, ensure_ascii=False)
    function = {"name": name, "arguments": text}
    return {"id": f"call0000{number}", "type": "function", "function": function}


def _user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _answer(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def _result(number: int, text: str, name: str = "get_weather") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call0000{number}", "name": name, "content": text}


_SYSTEM = {"role": "system", "content": "Be brief."}
_PARIS = _call(1, "get_weather", city="Paris", unit="c")

CONVERSATIONS: dict[str, dict[str, Any]] = {
    "user": {"messages": [_user("Hello")]},
    "system": {"messages": [_SYSTEM, _user(" Hi "), _answer("Yes?\n"), _user("Go on")]},
    "tools": {"messages": [_user("Weather?")], "tools": [_WEATHER, _ADD]},
    "call": {
        "messages": [
            _SYSTEM,
            _user("Weather in Paris?"),
            _answer("", tool_calls=[_PARIS]),
            _result(1, '{"t": 21}'),
        ],
        "tools": [_WEATHER],
    },
    "null_content": {
        "messages": [
            _user("Weather in Paris?"),
            {"role": "assistant", "content": None, "refusal": None, "tool_calls": [_PARIS]},
            _result(1, "21"),
            _answer("It is 21."),
            _user("Thanks"),
        ],
        "tools": [_WEATHER],
    },
    "several_calls": {
        "messages": [
            _user("Both"),
            _answer(
                "I look.",
                tool_calls=[
                    _call(1, "get_weather", city="北京", days=None, tags=["a"], where={"lat": 1.5}),
                    _call(2, "add", a=1, b=-2.25),
                ],
            ),
            _result(1, "snow"),
            _result(2, "-1.25", "add"),
        ],
        "tools": [_WEATHER, _ADD],
    },
    "parts": {
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
            _user([{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}]),
        ]
    },
    "developer": {
        "messages": [{"role": "developer", "content": "Answer in French."}, _user("Hello")]
    },
    "reasoning": {
        "messages": [
            _user("2 + 2?"),
            _answer("4", reasoning_content="Adding them.\n"),
            _user("And 3?"),
            _answer("", reasoning_content="A tool.", tool_calls=[_call(1, "add", a=4, b=3)]),
            _result(1, "7", "add"),
        ],
        "tools": [_ADD],
    },
    "characters": {
        "messages": [
            _user("<b>\"it's\" & \\n\n\ttabs é 北京 🙂 \u2028 </think> {{ x }} {% y %}"),
            _answer("<think>\nhm\n</think>\n\nso"),
            _user("  "),
        ]
    },
    "variables": {
        "messages": [_user("Hello")],
        "variables": {"enable_thinking": False, "reasoning_effort": "low", "thinking_budget": 0},
    },
    "documents": {
        "messages": [_user("What do they say?")],
        "variables": {"documents": [{"doc_id": 1, "title": "A", "text": "B"}], "thinking": True},
    },
    "later_system": {
        "messages": [_user("Hello"), _answer("Hi"), {"role": "system", "content": "Shout."},
                     _user("Now?")]
    },
}  # fmt: skip
