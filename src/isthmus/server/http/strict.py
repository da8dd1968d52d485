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
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

import msgspec
from starlette.requests import Request as HttpRequest

from isthmus.server.http.endpoint import decode_json, read_body, require_unique_keys
from isthmus.server.http.errors import HttpError
from isthmus.server.http.support import Row, Table, kind_of_tool
from isthmus.server.http.wording import fault_of, place_of, value_at
from isthmus.spelling import suggestion

Tables: TypeAlias = "Mapping[str, Table]"
NO_TABLES: Tables = MappingProxyType({"": MappingProxyType({})})
"""Those of a body of which no part is known and refused."""
_T = TypeVar("_T")
_Wanted = TypeVar("_Wanted")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL)
_INDEX = re.compile(r"\[\d+\]")
_AROUND = re.compile(r"(?:\.?[^.\[\]]+|\[[^\]]*\])\Z")
"""The last step of the way to a place."""
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_value = msgspec.json.Decoder(Any)
_SMALL_NBYTES = 65_536
"""Bytes of a body that the event loop looks through, in a millisecond; others take a thread."""
_MAX_NAME = 80
"""Characters of a name that are told again."""


async def read_strictly(
    http: HttpRequest,
    decoder: msgspec.json.Decoder[_T],
    tables: Tables = NO_TABLES,
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


def decode_strictly(
    body: bytes, decoder: msgspec.json.Decoder[_T], tables: Tables = NO_TABLES
) -> _T:
    """A body, decoded; an object that has a name twice is refused. HttpError 400."""
    try:
        asked = _decoded(body, decoder, tables)
    except msgspec.ValidationError as error:
        raise _refusal_of(error, _given(body), decoder.type, tables) from None
    require_unique_keys(body)
    return asked


def _decoded(body: bytes, decoder: msgspec.json.Decoder[_T], tables: Tables) -> _T:
    """A body, decoded without the fields that are refused and say nothing."""
    try:
        return decode_json(body, decoder)
    except msgspec.ValidationError as error:
        left = _without_silent(body, tables) if _UNKNOWN.match(str(error)) else None
        if left is None:
            raise
    return decode_json(left, decoder)


def _given(body: bytes) -> Any:
    """A body as it came; None if a number in it is too large for one."""
    try:
        return decode_json(body, _value)
    except msgspec.ValidationError:
        return None


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


def _refusal_of(error: msgspec.ValidationError, given: Any, kind: Any, tables: Tables) -> HttpError:
    """Why a body is refused: 400."""
    text, where = place_of(error)
    if refused_kind := _refused_kind(given, where, tables):
        return refused_kind
    if unknown := _UNKNOWN.match(text):
        return _unknown(unknown["name"][:_MAX_NAME], where, kind, tables)
    parent, _, name = where.rpartition(".")
    row = tables.get(_any(parent), {}).get(name)
    if row is not None and row.is_refused:
        return _unsupported(where, where, row)
    fault = fault_of(error, given, kind)
    return HttpError(400, fault.said, code=fault.code, param=fault.param)


def _refused_kind(given: Any, where: str, tables: Tables) -> HttpError | None:
    """The refusal of the value at a place, or of the `type` of an object around it. What a refused
    kind of tool has beside its type is wrong too, and no reason."""
    place = where
    while place:
        for each in (place, f"{place}.type"):
            rows, value = tables.get(_any(each), {}), value_at(given, each)
            row = rows.get(kind_of_tool(rows, value)) if isinstance(value, str) else None
            if row is not None and row.is_refused:
                return _unsupported(each, f"{each} {str(value)[:_MAX_NAME]}", row)
        place = _AROUND.sub("", place)
    return None


def _unknown(name: str, where: str, kind: Any, tables: Tables) -> HttpError:
    """The refusal of a field that no type has; a body of type `kind` may have no table."""
    rows = tables.get(_any(where), {})
    row = rows.get(name)
    taken = [it for it, row in rows.items() if not row.is_refused]
    if not where and not rows:
        taken = [it.encode_name for it in msgspec.structs.fields(kind)]
    where = f"{where}.{name}".removeprefix(".")
    if row is not None and row.is_refused:
        return _unsupported(where, where, row)
    said = f"there is no field {where} here{suggestion(name, taken)}"
    return HttpError(400, said, code="unknown_parameter", param=where)


def _unsupported(where: str, what: str, row: Row) -> HttpError:
    said = f"{what} is not supported: {row.said}"
    return HttpError(400, said, code="unsupported_parameter", param=where)


def _any(where: str) -> str:
    """A place as tables name it, with any number for each index."""
    return _INDEX.sub("[]", where)
