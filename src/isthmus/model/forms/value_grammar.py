"""Grammars of values that follow a JSON schema, in notations other than JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from isthmus.model.forms.lark import Lark, part
from isthmus.model.forms.tools import resolved, types_in
from isthmus.model.forms.values import BARE_WORD, PYTHON, Notation, in_python

Schema = Mapping[str, Any]


def value_in(notation: Notation, lark: Lark, root: Schema, schema: Schema) -> str | None:
    """The expression of a value of a schema; None if it refers to something outside of itself and
    the root's definitions. What has no simple type is written as JSON, which all readers take."""
    whole = dict(root) if schema is root else part(root, schema)
    if whole is None:
        return None
    if notation.bare:
        return _bare(notation, lark, root, schema, whole)
    if notation is PYTHON:
        return _python(lark, root, schema) or lark.json(whole)
    return lark.json(whole)


def _python(lark: Lark, root: Schema, schema: Schema) -> str | None:
    if "enum" in schema or "const" in schema:
        values = schema.get("enum") or [schema.get("const")]
        return lark.any_of([lark.spelled(in_python(it)) for it in values])
    types = types_in(root, schema)
    if types == {"boolean"}:
        return lark.any_of([lark.text("True"), lark.text("False")])
    return None


def _bare(
    notation: Notation, lark: Lark, root: Schema, schema: Schema, whole: Schema
) -> str | None:
    if isinstance(schema.get("$ref"), str):
        schema = resolved(root, schema["$ref"])
    types = types_in(root, schema)
    if types == {"string"}:
        return _bare_string(notation, lark, schema) or lark.json(whole)
    if types == {"object"} and all(map(BARE_WORD.fullmatch, _keys(schema))):
        return lark.rule_of(schema, lambda: _bare_object(notation, lark, root, schema))
    if types == {"array"} and isinstance(schema.get("items"), Mapping):
        return lark.rule_of(schema, lambda: _bare_array(notation, lark, root, schema))
    return lark.json(whole)


def _keys(schema: Schema) -> list[str]:
    """Names of an object's properties; one that cannot be written bare if it has none."""
    properties = schema.get("properties")
    return [*properties] if isinstance(properties, Mapping) else ["{}"]


def _bare_string(notation: Notation, lark: Lark, schema: Schema) -> str | None:
    quote = next(iter(notation.quotes))
    values = schema.get("enum")
    if not isinstance(values, list):
        return f"{lark.text(quote)} {lark.free(quote, *lengths(schema))}"
    if any(quote in str(it) for it in values):
        return None
    said = lark.any_of([lark.spelled(str(it)) for it in values])
    return f"{lark.text(quote)} {said} {lark.text(quote)}"


def _bare_array(notation: Notation, lark: Lark, root: Schema, schema: Schema) -> str | None:
    item = value_in(notation, lark, root, schema["items"])
    least, most = lengths(schema, "Items")
    if item is None or most == 0:
        return item and '"[]"'
    count = f"{{{max(0, least - 1)},{'' if most is None else most - 1}}}"
    items = f'{item} ("," {item}){count}'
    return f'"[" {items if least else f"({items})?"} "]"'


def _bare_object(notation: Notation, lark: Lark, root: Schema, schema: Schema) -> str | None:
    required: list[str] = []
    optional: list[str] = []
    for key, each in schema["properties"].items():
        inner = each if isinstance(each, Mapping) else {}
        value = value_in(notation, lark, root, inner)
        if value is None:
            return None
        member = f"{lark.text(f'{key}:')} {value}"
        (required if key in (schema.get("required") or ()) else optional).append(member)
    return f'"{{" {lark.members(required, optional, ",")} "}}"'


def lengths(schema: Schema, of: str = "Length") -> tuple[int, int | None]:
    """The least and the greatest length of a text, or number of `Items`; None if there is no
    greatest."""
    least, most = schema.get(f"min{of}"), schema.get(f"max{of}")
    return (least if isinstance(least, int) else 0, most if isinstance(most, int) else None)
