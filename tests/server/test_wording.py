"""What is wrong with a body is said as OpenAI says it: where, what was expected, what came."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from isthmus.server.http.errors import HttpError
from isthmus.server.http.strict import decode_strictly
from isthmus.server.http.wording import place_of, value_at
from isthmus.server.openai.requests import ChatRequest

PLAIN = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
CASES: list[tuple[dict[str, Any], str, str, str]] = [
    (
        {"temperature": "hot"},
        "temperature",
        "invalid_type",
        "Invalid type for 'temperature': expected a decimal, but got a string instead.",
    ),
    (
        {"stop": 5},
        "stop",
        "invalid_type",
        "Invalid type for 'stop': expected a string or an array, but got an integer instead.",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": 5}]}]},
        "messages[0].content[0].type",
        "invalid_type",
        "Invalid type for 'messages[0].content[0].type': expected a string, but got an integer "
        "instead.",
    ),
    (
        {"logit_bias": {"1": 5, "2": None, "3": "x"}},
        "logit_bias.2",
        "invalid_type",
        "Invalid type for 'logit_bias.2': expected a decimal, but got null instead.",
    ),
    (
        {"n": 0},
        "n",
        "integer_below_min_value",
        "Invalid 'n': integer below minimum value. Expected a value >= 1, but got 0 instead.",
    ),
    (
        {"top_p": 1.5},
        "top_p",
        "decimal_above_max_value",
        "Invalid 'top_p': decimal above maximum value. Expected a value <= 1, but got 1.5 instead.",
    ),
    (
        {"logit_bias": {"7": 3, "8": -101}},
        "logit_bias.8",
        "decimal_below_min_value",
        "Invalid 'logit_bias.8': decimal below minimum value. Expected a value >= -100, but got "
        "-101 instead.",
    ),
    (
        {"user": "x" * 1025},
        "user",
        "string_above_max_length",
        "Invalid 'user': string too long. Expected a string with maximum length 1024, but got a "
        "string with length 1025 instead.",
    ),
    (
        {"stop": ["a", ""]},
        "stop[1]",
        "empty_string",
        "Invalid 'stop[1]': empty string. Expected a string with minimum length 1, but got an "
        "empty string instead.",
    ),
    (
        {"messages": []},
        "messages",
        "empty_array",
        "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an "
        "empty array instead.",
    ),
    (
        {"stop": ["a"] * 17},
        "stop",
        "array_above_max_length",
        "Invalid 'stop': array too long. Expected an array with maximum length 16, but got an "
        "array with length 17 instead.",
    ),
    (
        {"metadata": {str(n): "" for n in range(17)}},
        "metadata",
        "object_above_max_properties",
        "Invalid 'metadata': too many properties. Expected an object with at most 16, but got 17 "
        "instead.",
    ),
    (
        {"metadata": {"k" * 65: ""}},
        "metadata",
        "string_above_max_length",
        "Invalid key in 'metadata': string too long. Expected a string with maximum length 64, "
        "but got a string with length 65 instead.",
    ),
    (
        {"messages": [{"content": "hi"}]},
        "messages[0].role",
        "missing_required_parameter",
        "Missing required parameter: 'messages[0].role'.",
    ),
    (
        {"response_format": {"type": "json"}},
        "response_format.type",
        "invalid_value",
        "Invalid value for 'response_format.type': 'json'. Supported values are: 'json_object', "
        "'json_schema' and 'text'.",
    ),
    (
        {"tool_choice": {"type": "odd"}},
        "tool_choice.type",
        "invalid_value",
        "Invalid value for 'tool_choice.type': 'odd'. Supported values are: 'function' and "
        "'allowed_tools'.",
    ),
    (
        {"tools": [{"type": "odd", "function": {"name": "f"}}]},
        "tools[0].type",
        "invalid_value",
        "Invalid value for 'tools[0].type': 'odd'. Supported: 'function'.",
    ),
]


def refused(body: bytes, kind: Any = ChatRequest) -> HttpError:
    with pytest.raises(HttpError) as caught:
        decode_strictly(body, msgspec.json.Decoder(kind))
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(("more", "param", "code", "said"), CASES, ids=lambda it: str(it)[:30])
def test_what_is_wrong(more: dict[str, Any], param: str, code: str, said: str) -> None:
    error = refused(json.dumps({**PLAIN, **more}).encode())
    assert (error.param, error.code, str(error)) == (param, code, said)


def test_what_is_wrong_with_the_whole_body() -> None:
    for body, came in ((b"[]", "an array"), (b"null", "null"), (b'"x"', "a string")):
        error = refused(body)
        said = f"Invalid type for the body: expected an object, but got {came} instead."
        assert (error.param, error.code, str(error)) == (None, "invalid_type", said)


def test_what_is_long_is_cut() -> None:
    for more in ({"reasoning_effort": "x" * 100_000}, {"n": 10**3000}):
        assert len(str(refused(json.dumps({**PLAIN, **more}).encode()))) < 300
    for digits in (20, 400, 5000, 100_000):
        error = refused(json.dumps(PLAIN).encode()[:-1] + b', "n": ' + b"9" * digits + b"}")
        assert error.param == "n"
        assert len(str(error)) < 300


def test_one_more_than_what_a_float_can_tell() -> None:
    assert "but got 9223372036854775808 instead" in str(
        refused(json.dumps({**PLAIN, "seed": 2**63}).encode())
    )


def test_numbers_that_are_too_large() -> None:
    error = refused(json.dumps(PLAIN).encode()[:-1] + b', "temperature": 1e999}')
    assert (error.param, str(error)) == (
        "temperature",
        "Invalid 'temperature': number out of range.",
    )


def test_each_sentence_of_msgspec_is_known() -> None:
    """A sentence that a later release of msgspec words otherwise would be told as it is."""
    for more, *_ in CASES:
        with pytest.raises(msgspec.ValidationError) as wrong:
            msgspec.json.decode(json.dumps({**PLAIN, **more}).encode(), type=ChatRequest)
        assert "`" not in str(refused(json.dumps({**PLAIN, **more}).encode()))
        assert place_of(wrong.value)[0]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("a", [{"b": 1}]),
        ("a[0]", {"b": 1}),
        ("a[0].b", 1),
        ("a[1]", None),
        ("a.b", None),
        ("", ...),
    ],
)
def test_parts_of_a_body(path: str, value: Any) -> None:
    given = {"a": [{"b": 1}]}
    assert value_at(given, path) == (given if value is ... else value)
