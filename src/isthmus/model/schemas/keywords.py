"""The table of JSON Schema's keywords: what becomes of each, and what each looks like.

docs/server.md shows it. A keyword that is not in it is an annotation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Force(Enum):
    """How far a keyword is followed."""

    ENFORCED = "enforced"
    PARTLY = "enforced in part, else named in a warning"
    WARNED = "not enforced, named in a warning"
    ANNOTATION = "annotation"
    REFUSED = "refused"


@dataclass(frozen=True)
class Keyword:
    """A row of the table."""

    force: Force
    said: str = ""
    shape: str = ""
    """What its value must be, as a key of SHAPES; empty for anything."""


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(it, str) for it in value)


def _each(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda it: isinstance(it, Mapping) and all(map(test, it.values()))


def _is_schema(value: Any) -> bool:
    return isinstance(value, (Mapping, bool))


SHAPES: Mapping[str, Callable[[Any], bool]] = {
    "a schema": _is_schema,
    "a list of schemas, not empty": lambda it: (
        isinstance(it, list) and bool(it) and all(map(_is_schema, it))
    ),
    "a schema or a list of schemas": lambda it: (
        _is_schema(it) or (isinstance(it, list) and all(map(_is_schema, it)))
    ),
    "a list of schemas": lambda it: isinstance(it, list) and all(map(_is_schema, it)),
    "an object of schemas": _each(_is_schema),
    "an object of lists of texts": _each(_texts),
    "an object of schemas or lists of texts": _each(lambda it: _is_schema(it) or _texts(it)),
    "a list of texts": _texts,
    "a list": lambda it: isinstance(it, list),
    "a text": lambda it: isinstance(it, str),
    "a text or a list of texts": lambda it: isinstance(it, str) or _texts(it),
    "true or false": lambda it: isinstance(it, bool),
    "a number greater than 0": lambda it: (
        isinstance(it, (int, float)) and not isinstance(it, bool) and 0 < it < float("inf")
    ),
}

_IN, _PART, _NOTE = Force.ENFORCED, Force.PARTLY, Force.ANNOTATION

KEYWORDS: Mapping[str, Keyword] = {
    "type": Keyword(_IN, "one or a list", "a text or a list of texts"),
    "nullable": Keyword(_IN, "OpenAPI's: `type` allows null too", "true or false"),
    "const": Keyword(_IN, "of any type"),
    "enum": Keyword(_IN, "of any types", "a list"),
    "$ref": Keyword(
        _IN,
        "into any part of the schema, by pointer, `$anchor` or `$id`, also in circles that end; "
        "other documents, and circles that do not end, are refused",
        "a text",
    ),
    "$dynamicRef": Keyword(_IN, "as `$ref`; refused if several anchors have the name", "a text"),
    "$recursiveRef": Keyword(_IN, "as `$ref`", "a text"),
    "$defs": Keyword(_IN, "", "an object of schemas"),
    "definitions": Keyword(_IN, "", "an object of schemas"),
    "$id": Keyword(_IN, "references are relative to it; so is draft 4's `id`"),
    "$anchor": Keyword(_IN, "so is `$dynamicAnchor`"),
    "$schema": Keyword(_IN, "until draft 7, keywords beside `$ref` have no effect"),
    "allOf": Keyword(_IN, "", "a list of schemas, not empty"),
    "anyOf": Keyword(_IN, "", "a list of schemas, not empty"),
    "oneOf": Keyword(
        _PART,
        "exactly if its schemas exclude each other or have opposites that can be said; else as "
        "`anyOf`",
        "a list of schemas, not empty",
    ),
    "not": Keyword(_PART, "as far as the opposite can be said: see below", "a schema"),
    "if": Keyword(_PART, "with `then` and `else`; needs the opposite, as `not`", "a schema"),
    "then": Keyword(_PART, "with `if`", "a schema"),
    "else": Keyword(_PART, "with `if`", "a schema"),
    "minimum": Keyword(_IN, "exact, whatever the size; with bounds no exponent is written"),
    "maximum": Keyword(_IN, "the same"),
    "exclusiveMinimum": Keyword(_IN, "a number, or true as in draft 4"),
    "exclusiveMaximum": Keyword(_IN, "a number, or true as in draft 4"),
    "multipleOf": Keyword(
        _PART,
        "up to 1,000 without the point, such as 1000, 0.25 and 0.001, with bounds within ±2^53; "
        "of a greater one, a divisor",
        "a number greater than 0",
    ),
    "minLength": Keyword(_IN, "in characters"),
    "maxLength": Keyword(_IN, "in characters"),
    "pattern": Keyword(
        _IN,
        "regular expressions without references and word boundaries, lookaheads right after `^` "
        "and anchors at the beginning and the end only; others are refused, or named in a warning "
        "if a `format` beside them is enforced",
        "a text",
    ),
    "format": Keyword(
        _PART,
        "`date`, `time`, `date-time`, `duration`, `email`, `hostname`, `ipv4`, `ipv6`, `uuid`, "
        "`uri`, `json-pointer`, `relative-json-pointer`; JSON Schema's others are named in a "
        "warning, and what JSON Schema does not have is an annotation",
    ),
    "items": Keyword(_IN, "also a list, as in old drafts", "a schema or a list of schemas"),
    "prefixItems": Keyword(_IN, "", "a list of schemas"),
    "additionalItems": Keyword(_IN, "after a list of `items`", "a schema"),
    "minItems": Keyword(_IN),
    "maxItems": Keyword(_IN),
    "uniqueItems": Keyword(
        _PART, "for items that are one of at most 8 values; else not", "true or false"
    ),
    "contains": Keyword(_PART, "at least one, without `prefixItems`", "a schema"),
    "minContains": Keyword(_PART, "0 and 1"),
    "maxContains": Keyword(Force.WARNED),
    "unevaluatedItems": Keyword(
        _PART, "as `unevaluatedProperties`, without `contains`", "a schema"
    ),
    "properties": Keyword(_IN, "written in the schema's order", "an object of schemas"),
    "required": Keyword(_IN, "", "a list of texts"),
    "additionalProperties": Keyword(
        _IN, "their keys come after those that are named, without escapes", "a schema"
    ),
    "patternProperties": Keyword(_PART, "up to 4 patterns for one object", "an object of schemas"),
    "propertyNames": Keyword(_PART, "lengths, patterns, formats and values", "a schema"),
    "minProperties": Keyword(
        _PART, "as far as keys are named; others may be written twice, which JSON reads as one"
    ),
    "maxProperties": Keyword(_IN),
    "dependentRequired": Keyword(_IN, "", "an object of lists of texts"),
    "dependentSchemas": Keyword(_IN, "", "an object of schemas"),
    "dependencies": Keyword(_IN, "both of the former", "an object of schemas or lists of texts"),
    "unevaluatedProperties": Keyword(
        _PART, "by what stands beside it, and by the alternative that is written", "a schema"
    ),
    "title": Keyword(_NOTE, "and so is every keyword that is not in this table"),
    "description": Keyword(_NOTE),
    "default": Keyword(_NOTE),
    "examples": Keyword(_NOTE),
    "deprecated": Keyword(_NOTE),
    "readOnly": Keyword(_NOTE),
    "writeOnly": Keyword(_NOTE),
    "discriminator": Keyword(_NOTE, "OpenAPI's; the alternatives say the same"),
    "contentEncoding": Keyword(_NOTE),
    "contentMediaType": Keyword(_NOTE),
    "contentSchema": Keyword(_NOTE),
}


def fault_of(fields: Mapping[Any, Any]) -> str | None:
    """What is wrong with the shape of a schema's keywords; None if nothing is."""
    for name, value in fields.items():
        row = KEYWORDS.get(name) if isinstance(name, str) else None
        if row is not None and row.shape and not SHAPES[row.shape](value):
            return f"{name} is {row.shape}"
    return None


def as_markdown() -> str:
    """The table as docs/server.md has it."""
    lines = ["| keyword | what becomes of it | |", "| --- | --- | --- |"]
    lines += [f"| `{name}` | {it.force.value} | {it.said} |" for name, it in KEYWORDS.items()]
    return "\n".join(lines) + "\n"
