"""Bodies of which no part is ignored in silence: what no table has is refused by its name.

A body is decoded into a type that forbids what it does not know. `Tables` say why a part is
refused: by its place, in which `[]` stands for any number, rows of the fields there, or of the
values of a field such as `type`::

    {"": fields of the body, "messages[]": fields of a message, "tools[].type": kinds of tools}

A field that is refused may all the same be null, or have a value that says nothing.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

import msgspec
from starlette.requests import Request as HttpRequest

from isthmus.server.http.endpoint import decode_json, read_body, require_unique_keys
from isthmus.server.http.errors import HttpError, fault_of
from isthmus.server.http.support import Row, Table
from isthmus.spelling import suggestion

Tables: TypeAlias = "Mapping[str, Table]"
_T = TypeVar("_T")
_Wanted = TypeVar("_Wanted")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL)
_VALUE = re.compile(r"Invalid (?:enum )?value '(?P<name>.*)'", re.DOTALL)
_INDEX = re.compile(r"\[\d+\]")
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_value = msgspec.json.Decoder(Any)
_SMALL_NBYTES = 65_536
"""Bytes of a body that the event loop looks through, in a millisecond; others take a thread."""
_MOST_NAME = 80
"""Characters of a name that are told again."""


async def read_strictly(
    http: HttpRequest,
    decoder: msgspec.json.Decoder[_T],
    tables: Tables,
    most: int | None = None,
    empty: bytes = b"",
) -> _T:
    """The body of a request; `empty` stands for one that is not there. HttpError 400, with the part
    of the body that is wrong."""
    return (await read_wanted(http, decoder, tables, lambda _: None, most, empty))[0]


async def read_wanted(
    http: HttpRequest,
    decoder: msgspec.json.Decoder[_T],
    tables: Tables,
    translate: Callable[[_T], _Wanted],
    most: int | None = None,
    empty: bytes = b"",
) -> tuple[_T, _Wanted]:
    """The body of a request, and what `translate` makes of it. HttpError 400, as
    `read_strictly`."""
    body = await read_body(http, most) or empty

    def read() -> tuple[_T, _Wanted]:
        asked = decode_strictly(body, decoder, tables)
        return asked, translate(asked)

    return read() if len(body) <= _SMALL_NBYTES else await asyncio.to_thread(read)


def decode_strictly(body: bytes, decoder: msgspec.json.Decoder[_T], tables: Tables) -> _T:
    """A body, decoded; an object that has a name twice is refused. HttpError 400."""
    try:
        asked = decode_json(body, decoder)
    except msgspec.ValidationError as error:
        left = _without_silent(body, tables) if _UNKNOWN.match(str(error)) else None
        if left is None:
            raise _refusal_of(error, tables) from None
        try:
            asked = decode_json(left, decoder)
        except msgspec.ValidationError as again:
            raise _refusal_of(again, tables) from None
    require_unique_keys(body)
    return asked


def _without_silent(body: bytes, tables: Tables) -> bytes | None:
    """A body without the fields that are refused and say nothing, in itself and in its objects that
    have a table; None if it has none."""
    found = decode_json(body, _fields)
    left = _loud(found, tables[""])
    n_silent = len(found) - len(left)
    for place in tables.keys() & left.keys():
        if bytes(left[place]).startswith(b"{"):
            inner = decode_json(bytes(left[place]), _fields)
            loud = _loud(inner, tables[place])
            n_silent += len(inner) - len(loud)
            left[place] = msgspec.Raw(msgspec.json.encode(loud))
    return msgspec.json.encode(left) if n_silent else None


def _loud(fields: dict[str, msgspec.Raw], rows: Table) -> dict[str, msgspec.Raw]:
    return {name: it for name, it in fields.items() if not _is_silent(rows.get(name), it)}


def _is_silent(row: Row | None, raw: msgspec.Raw) -> bool:
    if row is None or not row.is_refused:
        return False
    value = decode_json(bytes(raw), _value)
    same = [it for it in row.silent if isinstance(it, bool) == isinstance(value, bool)]
    return value is None or value in same


def _refusal_of(error: msgspec.ValidationError, tables: Tables) -> HttpError:
    """Why a body is refused: 400."""
    text, where = fault_of(error)
    where = where.removeprefix(".")
    if unknown := _UNKNOWN.match(text):
        name = unknown["name"][:_MOST_NAME]
        rows = tables.get(_INDEX.sub("[]", where), {})
        row = rows.get(name)
        where = f"{where}.{name}".removeprefix(".")
        if row is not None and row.is_refused:
            return _unsupported(where, where, row)
        taken = [it for it, row in rows.items() if not row.is_refused]
        said = f"there is no field {where} here{suggestion(name, taken)}"
        return HttpError(400, said, code="unknown_parameter", param=where)
    parent, _, name = where.rpartition(".")
    row = tables.get(_INDEX.sub("[]", parent), {}).get(name)
    if row is not None and row.is_refused:
        return _unsupported(where, where, row)
    value = _VALUE.match(text)
    row = tables.get(_INDEX.sub("[]", where), {}).get(value["name"]) if value else None
    if value and row is not None and row.is_refused:
        return _unsupported(where, f"{where} {value['name']}", row)
    return HttpError(400, f"{where}: {text}" if where else text, param=where or None)


def _unsupported(where: str, what: str, row: Row) -> HttpError:
    said = f"{what} is not supported: {row.said}"
    return HttpError(400, said, code="unsupported_parameter", param=where)
