"""Tools that a model may call, as OpenAI's API has them, and what their schemas say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NAME = re.compile(r"[\w.:/\-]*")
"""A function's name, as far as it goes where it is not in quotes."""
_MAX_NAME = 300
_PREFIX = "functions."
"""Some forms write it before each name."""


class Tools:
    """The functions that a model was told of; None if nobody knows which there are."""

    def __init__(self, tools: Sequence[Mapping[str, Any]] | None) -> None:
        """Takes `{"type": "function", "function": {"name", "parameters"}}`, or what is inside."""
        self._schemas: dict[str, Mapping[str, Any]] | None = None
        if tools is not None:
            functions = [it.get("function", it) for it in tools]
            self._schemas = {
                str(it["name"]): _mapping(it.get("parameters")) for it in functions if "name" in it
            }

    @property
    def any(self) -> bool:
        """Whether anything may be called."""
        return self._schemas is None or bool(self._schemas)

    def known(self, name: str) -> str | None:
        """The function that a model means by a name; None if there is none."""
        if self._schemas is None:
            return name.removeprefix(_PREFIX) if _may_be_name(name) else None
        plain = name.removeprefix(_PREFIX)
        return next((it for it in (name, plain) if it in self._schemas), None)

    def parameters(self, name: str) -> list[str]:
        """Names of a function's parameters, in the schema's order."""
        return [str(it) for it in _mapping(self._schema(name).get("properties"))]

    def types(self, name: str, parameter: str) -> frozenset[str]:
        """JSON types that a parameter may have; empty if its schema does not say."""
        root = self._schema(name)
        schema = _mapping(root.get("properties")).get(parameter)
        if schema is None:
            schema = root.get("additionalProperties")
        return types_in(root, _mapping(schema))

    def _schema(self, name: str) -> Mapping[str, Any]:
        return (self._schemas or {}).get(name, {})


def _may_be_name(name: str) -> bool:
    return 0 < len(name) <= _MAX_NAME and NAME.fullmatch(name) is not None


def types_in(root: Mapping[str, Any], schema: Mapping[str, Any]) -> frozenset[str]:
    """JSON types that a schema, which may refer to a root's definitions, allows; empty if it does
    not say."""
    return frozenset(_types(root, schema))


def _types(root: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[str]:
    """Each schema is looked at once, so that neither depth nor circles of references matter."""
    waiting, seen = [schema], set()
    while waiting:
        it = waiting.pop()
        if id(it) in seen:
            continue
        seen.add(id(it))
        for kind in ("anyOf", "oneOf", "allOf"):
            found = it.get(kind)
            waiting += [_mapping(each) for each in found] if isinstance(found, list) else []
        if isinstance(it.get("$ref"), str):
            waiting.append(resolved(root, it["$ref"]))
        yield from _own_types(it)


def _own_types(schema: Mapping[str, Any]) -> Iterator[str]:
    said = schema.get("type")
    if isinstance(said, str):
        yield said
    elif isinstance(said, list):
        yield from (it for it in said if isinstance(it, str))
    else:
        values = schema.get("enum")
        for value in values if isinstance(values, list) else ():
            yield type_of(value)
        if "const" in schema:
            yield type_of(schema["const"])


def type_of(value: object) -> str:
    """The JSON type of a decoded value."""
    if value is None:
        return "null"
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array"}
    return names.get(type(value), "object")


def resolved(root: Mapping[str, Any], reference: str) -> Mapping[str, Any]:
    """The schema that `#/…` names within a root; empty if there is none."""
    found: Any = root
    if not reference.startswith("#"):
        return {}
    for key in reference[1:].split("/")[1:]:
        found = _mapping(found).get(key.replace("~1", "/").replace("~0", "~"))
    return _mapping(found)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
