"""Routes that say what they take and give, and the OpenAPI document that follows from them.

An endpoint's summary is the first line of its handler's docstring; its schemas are those of the
types that the handler decodes and returns.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from isthmus.server.http.depth import is_deep
from isthmus.server.http.errors import ErrorReply, HttpError
from isthmus.server.http.support import Table
from isthmus.server.http.wording import fault_of

Content: TypeAlias = "type | str"
"""A type, as JSON; or the media type of something else."""
BINARY = "application/octet-stream"
_TEMPLATE = "#/components/schemas/{name}"
_T = TypeVar("_T")
_encode = msgspec.json.Encoder().encode
_MAX_PARTS = 262_144
"""Brackets that open a list or an object in a body, those in its texts among them: they are read in
50 ms, in which the event loop does nothing else. A text of as many fits into few contexts."""


class Endpoint(Route):
    """A path and a method, with one handler."""

    fails: tuple[type, ...] = (ErrorReply,)
    """The bodies that errors have."""
    tables: Mapping[type, Table] = MappingProxyType({})
    """What becomes of the fields of bodies, by their types."""

    def __init__(
        self,
        method: str,
        path: str,
        handler: Callable[[Request], Awaitable[Response]],
        *,
        query: type[msgspec.Struct] | None = None,
        takes: Content | None = None,
        gives: tuple[Content, ...],
        status: int = 200,
    ) -> None:
        super().__init__(path, handler, methods=[method])
        self.method = method
        self.query = query
        self.takes = takes
        """The body, which may be left out where all of its fields may."""
        self.gives, self.status = gives, status

    @property
    def types(self) -> list[Any]:
        """Types of its bodies that are JSON, errors among them."""
        contents = (self.takes, *self.gives, *self.fails)
        return [it for it in contents if it is not None and not isinstance(it, str)]


async def read_body(request: Request, most: int | None = None) -> bytes:
    """The body. HttpError 400 for one of more than `most` bytes, which could not fit into any
    context: it is not decoded."""
    body = await request.body()
    if most is not None and len(body) > most:
        said = f"the body has {len(body)} bytes; what fits into the context has at most {most}"
        raise HttpError(400, said, code="context_length_exceeded")
    return body


def decode_json(body: bytes, decoder: msgspec.json.Decoder[_T]) -> _T:
    """A body, decoded.

    msgspec.ValidationError names what is wrong; HttpError 400 if it is no JSON in UTF-8, is nested
    more deeply than can be read, or has more lists and objects than can be read while others wait.
    """
    if (n_parts := body.count(b"{") + body.count(b"[")) > _MAX_PARTS:
        said = f"the body has {n_parts} lists and objects; {_MAX_PARTS} are read"
        raise HttpError(400, said, code="invalid_json")
    try:
        return decoder.decode(body)
    except UnicodeDecodeError as error:
        said = f"the body is not UTF-8: byte {error.start} of a text cannot be read"
    except RecursionError:
        said = "the body is nested too deeply"
    raise HttpError(400, said, code="invalid_json")


def as_json(body: object) -> Response:
    """A body as JSON, written by msgspec: what is long keeps the event loop a fifth of the time
    that Starlette's JSONResponse does."""
    return Response(_encode(body), media_type="application/json")


def encoded(part: object) -> msgspec.Raw:
    """A part of a body, as JSON by itself: no other thread runs while JSON is written."""
    return msgspec.Raw(_encode(part))


async def written(work: Callable[[], object], *, is_long: bool) -> Response:
    """What `work` gives, as JSON; made in a thread if it may take longer than a few milliseconds,
    so that the event loop serves others meanwhile."""
    return await asyncio.to_thread(lambda: as_json(work())) if is_long else as_json(work())


def read_query(request: Request, kind: type[_T]) -> _T:
    """What stands behind the `?`. HttpError 400."""
    given = dict(request.query_params)
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        fault = fault_of(error, given, kind)
        raise HttpError(400, fault.said, code=fault.code, param=fault.param) from None


def require_unique_keys(body: bytes) -> None:
    """HttpError 400 for an object that has a key twice, since it could be read in two ways, and for
    what is no JSON, or is nested too deeply to be written again."""
    try:
        found = json.loads(body, object_pairs_hook=_unique, parse_int=str, parse_float=str)
        too_deep = is_deep(found)
    except RecursionError:
        too_deep = True
    except ValueError as error:
        raise HttpError(400, f"the body is not JSON: {error}", code="invalid_json") from None
    if too_deep:
        raise HttpError(400, "the body is nested too deeply", code="invalid_json")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of these pairs."""
    found = dict(pairs)
    if len(pairs) != len(found):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        said = f"the key {twice[:40]!r} is given twice in one object"
        raise HttpError(400, said, code="invalid_json", param=twice[:40])
    return found


def document(
    routes: Iterable[BaseRoute], version: str, keyless: Callable[[str], bool] | None
) -> dict[str, Any]:
    """OpenAPI 3.1: https://spec.openapis.org/oas/v3.1.1.html

    `keyless` says which paths need no key; None where none does.
    """
    endpoints = [it for it in routes if isinstance(it, Endpoint)]
    types = dict.fromkeys(kind for it in endpoints for kind in it.types)
    schemas, components = msgspec.json.schema_components(types, ref_template=_TEMPLATE)
    schema_of = dict(zip(types, schemas, strict=True))
    for it in endpoints:
        _describe(it, schema_of, components)
    paths: dict[str, dict[str, Any]] = {}
    named: Counter[str] = Counter()
    for it in endpoints:
        operation = _operation(it, schema_of)
        name = operation["operationId"]
        named[name] += 1
        if named[name] > 1:  # a handler may have several paths
            operation["operationId"] = f"{name}-{named[name]}"
        if keyless is not None and not keyless(it.path):
            operation["security"] = [{"key": []}]
        paths.setdefault(it.path_format, {})[it.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Isthmus", "version": version},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _describe(it: Endpoint, schema_of: dict[Any, Any], components: dict[str, Any]) -> None:
    """Puts what becomes of each field into the schema of a body."""
    rows = {} if it.takes is None or isinstance(it.takes, str) else it.tables.get(it.takes, {})
    if not rows:
        return
    name = schema_of[it.takes]["$ref"].rpartition("/")[2]
    for field, schema in components[name]["properties"].items():
        row = rows[field]
        said = f"{row.support.value}: {row.said}" if row.said else row.support.value
        schema.setdefault("description", said)


def _operation(it: Endpoint, schema_of: dict[Any, Any]) -> dict[str, Any]:
    said = (it.endpoint.__doc__ or "").split("\n")[0]
    failed = _response("what went wrong", it.fails, schema_of)
    found: dict[str, Any] = {
        "summary": said,
        "operationId": it.endpoint.__qualname__.rpartition("<locals>.")[2].replace(".", "-"),
        "parameters": [*_path_parameters(it), *_query_parameters(it)],
        "responses": {
            str(it.status): _response("done", it.gives, schema_of),
            "4XX": failed,
            "5XX": failed,
        },
    }
    if it.takes is not None:
        fields = [] if isinstance(it.takes, str) else msgspec.structs.fields(it.takes)
        found["requestBody"] = {
            "required": isinstance(it.takes, str) or any(field.required for field in fields),
            "content": _content((it.takes,), schema_of),
        }
    return found


def _path_parameters(it: Endpoint) -> list[dict[str, Any]]:
    schema = {"type": "string", "minLength": 1}
    return [
        {"name": name, "in": "path", "required": True, "schema": schema}
        for name in it.param_convertors
    ]


def _query_parameters(it: Endpoint) -> list[dict[str, Any]]:
    if it.query is None:
        return []
    _, components = msgspec.json.schema_components([it.query])
    schema = components[it.query.__name__]
    return [
        {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": of}
        for name, of in schema["properties"].items()
    ]


def _response(
    said: str, contents: tuple[Content, ...], schema_of: dict[Any, Any]
) -> dict[str, Any]:
    return {"description": said, "content": _content(contents, schema_of)}


def _content(contents: tuple[Content, ...], schema_of: dict[Any, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {it: {"schema": {}} for it in contents if isinstance(it, str)}
    schemas = [schema_of[it] for it in contents if not isinstance(it, str)]
    if schemas:
        schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
        found["application/json"] = {"schema": schema}
    return found
