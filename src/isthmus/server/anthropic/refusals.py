"""Why a body is refused, in the words of `fields.py`."""

from __future__ import annotations

import re

import msgspec
from msgspec import Struct

from isthmus.server.anthropic.fields import BLOCKS, FIELDS, TOOLS
from isthmus.server.http.errors import HttpError, fault_of
from isthmus.server.http.support import Row, Support, kind_of_tool

_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>[^`]*)`")
_TAG = re.compile(r"Invalid value '(?P<name>[^']*)'")
_IN_TOOLS = re.compile(r"tools\[(?P<index>\d+)\]")


class _AnyTool(Struct):
    type: str | None = None


class _AnyTools(Struct):
    tools: list[_AnyTool]


_tools_decoder = msgspec.json.Decoder(_AnyTools)


def refusal_of(error: msgspec.ValidationError, body: bytes) -> HttpError:
    """Why a body is none of this API's, with the part that is wrong: HttpError 400."""
    text, where = fault_of(error)
    where = where.removeprefix(".")
    if tool := _refused_tool(where, body):
        return HttpError(400, tool.said, code="unsupported", param=f"{_tool_at(where)}.type")
    if unknown := _UNKNOWN.match(text):
        where = f"{where}.{unknown['name']}".removeprefix(".")
        return _refusal(where, FIELDS.get(where), "there is no such field")
    if where.endswith("].type") and (tag := _TAG.match(text)):
        return _refusal(where, BLOCKS.get(tag["name"]), text)
    return _refusal(where, FIELDS.get(where), text)


def _refusal(where: str, row: Row | None, text: str) -> HttpError:
    if row is not None and row.support is Support.REFUSED:
        return HttpError(400, row.said, code="unsupported", param=where)
    return HttpError(400, text, param=where or None)


def _tool_at(where: str) -> str:
    found = _IN_TOOLS.match(where)
    return "" if found is None else found[0]


def _refused_tool(where: str, body: bytes) -> Row | None:
    """The row of a tool that is not the client's own, if that is why a part of it is wrong."""
    found = _IN_TOOLS.match(where)
    if found is None:
        return None
    try:
        kind = _tools_decoder.decode(body).tools[int(found["index"])].type
    except (msgspec.DecodeError, IndexError, RecursionError):
        return None
    row = None if kind is None else TOOLS.get(kind_of_tool(TOOLS, kind))
    return row if row is not None and row.support is Support.REFUSED else None
