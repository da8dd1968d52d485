"""The table of what Anthropic's API takes, against the types, the refusals and the docs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from isthmus.server.anthropic.fields import (
    BLOCKS,
    FIELDS,
    MESSAGE_TABLES,
    TABLES,
    TOOL_FIELDS,
    TOOLS,
)
from isthmus.server.anthropic.requests import (
    Block,
    CountRequest,
    CustomTool,
    MessagesRequest,
    ToolReferenceBlock,
)
from isthmus.server.http.endpoint import require_unique_keys
from isthmus.server.http.errors import HttpError
from isthmus.server.http.strict import decode_strictly
from isthmus.server.http.support import Support, Table, as_markdown

DOCS = Path(__file__).parents[2] / "docs" / "server.md"
PLAIN = {"model": "m", "max_tokens": 7, "messages": [{"role": "user", "content": "hi"}]}
DATED = "20260318"


def names(rows: Table, *supports: Support) -> set[str]:
    return {name for name, row in rows.items() if row.support in supports}


def refused(**more: Any) -> HttpError:
    body = json.dumps({**PLAIN, **more}).encode()
    with pytest.raises(HttpError) as wrong:
        decode_strictly(body, msgspec.json.Decoder(MessagesRequest), MESSAGE_TABLES)
    return wrong.value


def test_fields_are_those_of_the_types() -> None:
    fields = {it.name for it in msgspec.structs.fields(MessagesRequest)}
    assert fields == names(FIELDS, Support.DONE, Support.WITHOUT_EFFECT)
    assert {it.name for it in msgspec.structs.fields(CountRequest)} < fields
    tool = {it.name for it in msgspec.structs.fields(CustomTool)}
    assert tool == names(TOOL_FIELDS, Support.DONE, Support.WITHOUT_EFFECT)
    tags = {str(it.__struct_config__.tag) for it in (*get_args(Block), ToolReferenceBlock)}
    assert tags == names(BLOCKS, Support.DONE, Support.WITHOUT_EFFECT)


@pytest.mark.parametrize("name", sorted(names(FIELDS, Support.REFUSED)))
def test_fields_that_are_refused(name: str) -> None:
    for value in ("x", ["x"], {"x": 1}, 1):
        error = refused(**{name: value})
        assert (error.status, error.param) == (400, name)
        assert str(error) == f"{name} is not supported: {FIELDS[name].said}"
        assert error.code == "unsupported_parameter"


def test_fields_that_are_refused_may_say_nothing() -> None:
    body = {**PLAIN, **dict.fromkeys(names(FIELDS, Support.REFUSED)), "mcp_servers": []}
    asked = decode_strictly(
        json.dumps(body).encode(), msgspec.json.Decoder(MessagesRequest), MESSAGE_TABLES
    )
    assert asked.max_tokens == 7


@pytest.mark.parametrize("name", sorted(names(BLOCKS, Support.REFUSED)))
def test_blocks_that_are_refused(name: str) -> None:
    block = {"type": name, "source": {"type": "url", "url": "http://x"}}
    error = refused(messages=[{"role": "user", "content": [{"type": "text", "text": "a"}, block]}])
    assert (error.status, error.param) == (400, "messages[0].content[1].type")
    assert str(error) == f"{error.param} {name} is not supported: {BLOCKS[name].said}"


@pytest.mark.parametrize("name", sorted(names(TOOLS, Support.REFUSED)))
def test_kinds_of_tools_that_are_refused(name: str) -> None:
    kind = name.replace("*", DATED)
    for tool in (
        {"type": kind, "name": "x", "max_uses": 5},
        {"max_uses": 5, "name": "x", "type": kind},
        {"name": "x", "type": kind},
        {"type": kind, "name": "x", "input_schema": {}},
    ):
        error = refused(tools=[{"name": "mine", "input_schema": {}}, tool])
        assert (error.status, error.param) == (400, "tools[1].type")
        assert str(error) == f"tools[1].type {kind} is not supported: {TOOLS[name].said}"


@pytest.mark.parametrize(
    ("more", "where"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2**70}, "max_tokens"),
        ({"max_tokens": "7"}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "odd"}]}]},
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"tools": [{"name": "x", "input_schema": {}, "odd": 1}]}, "tools[0].odd"),
        ({"tools": [{"name": "x", "input_schema": {}, "type": "odd"}]}, "tools[0].type"),
        ({"tools": [{"name": "", "input_schema": {}}]}, "tools[0].name"),
        ({"tool_choice": {"type": "odd"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "any", "odd": 1}}, "tool_choice.odd"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
    ],
)
def test_what_is_wrong_is_named(more: dict[str, Any], where: str) -> None:
    error = refused(**more)
    assert (error.status, error.param) == (400, where)
    assert str(error)


def test_keys_that_are_given_twice() -> None:
    for body in (
        b'{"a":1,"a":2}',
        b'{"x":[{"b":{"a":1,"b":2,"\\u0061":3}}]}',
        b'{"a":1,"b":{},"a":[]}',
    ):
        with pytest.raises(HttpError, match="the key 'a' is given twice"):
            require_unique_keys(body)
    require_unique_keys(b'{"a":{"a":[{"a":1},{"a":2}]},"b":[1e999,' + b"9" * 10_000 + b"]}")


def test_the_docs_have_the_table() -> None:
    page = DOCS.read_text()
    begin = page.index("<!-- messages:")
    end = page.index("<!-- end -->", begin)
    assert page[begin:end].partition("-->\n")[2] == as_markdown(TABLES)
