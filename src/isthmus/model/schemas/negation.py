"""The opposite of a schema, as alternatives: a value follows one of them unless it follows it.

A schema is all of its keywords together, so its opposite is the opposite of any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from isthmus.model.schemas.document import Document, Node, refuse
from isthmus.model.schemas.evaluation import (
    TYPES,
    Own,
    bound_of,
    count_of,
    pattern_of,
    types_of,
)
from isthmus.model.schemas.formats import FORMATS

_MAX_DEPTH = 20
_BOUNDS = {
    "minimum": ("exclusiveMaximum", "minimum"),
    "maximum": ("exclusiveMinimum", "maximum"),
}
_COUNTS = {
    "Length": "string",
    "Items": "array",
    "Properties": "object",
}
_INEXACT = {
    "multipleOf": "number",
    "uniqueItems": "array",
    "additionalItems": "array",
    "unevaluatedItems": "array",
    "additionalProperties": "object",
    "patternProperties": "object",
    "propertyNames": "object",
    "unevaluatedProperties": "object",
    "dependentSchemas": "object",
    "dependentRequired": "object",
    "dependencies": "object",
}
"""Keywords whose opposites cannot be said, and the type of values that they are about."""


class Negation:
    """See the module. Each alternative is a schema that was made for it."""

    def __init__(self, document: Document, warn: Callable[[Node, str], None]) -> None:
        self._document = document
        self._warn = warn
        self._known: dict[Node, list[Node]] = {}

    def of(self, node: Node, depth: int = 0) -> list[Node]:
        """The alternatives; none if everything follows the schema. What cannot be said is wider
        than the opposite, and told to `warn`."""
        self._document.spend(node)
        if depth > _MAX_DEPTH:
            refuse(node, "not is nested too deeply")
        if isinstance(node.value, bool):
            return [] if node.value else [node.made(True)]
        if node not in self._known:
            self._known[node] = self._made(node, depth)
        return self._known[node]

    def _made(self, node: Node, depth: int) -> list[Node]:
        found: list[Node] = []
        for group in (self._applicators, self._values, self._numbers, self._counts):
            found += group(node, depth)
        found += [*self._strings(node), *self._arrays(node), *self._objects(node)]
        for keyword, kind in _INEXACT.items():
            if _says_something(keyword, node.fields.get(keyword)):
                found.append(self._wide(node, keyword, {"type": kind}))
        return found

    def _wide(self, node: Node, keyword: str, value: Any) -> Node:
        self._warn(node, f"the opposite of {keyword} cannot be enforced")
        return node.made(value, keyword)

    def _applicators(self, node: Node, depth: int) -> Iterator[Node]:
        fields = node.fields
        for keyword in ("$ref", "$dynamicRef", "$recursiveRef"):
            if keyword in fields:
                yield from self.of(self._document.resolved(node, keyword), depth + 1)
        for n in range(len(fields.get("allOf", ()))):
            yield from self.of(node.child("allOf", n), depth + 1)
        if "anyOf" in fields:
            yield node.made({"allOf": [{"not": it} for it in fields["anyOf"]]}, "anyOf")
        if "not" in fields:
            yield node.made({"allOf": [fields["not"]]}, "not")
        if "oneOf" in fields:
            yield self._wide(node, "oneOf", True)
        if "if" in fields:
            then, other = fields.get("then", True), fields.get("else", True)
            both = [
                {"allOf": [fields["if"], {"not": then}]},
                {"allOf": [{"not": fields["if"]}, {"not": other}]},
            ]
            yield node.made({"anyOf": both}, "if")

    def _values(self, node: Node, depth: int) -> Iterator[Node]:
        fields, types = node.fields, types_of(node)
        if types is not None:
            rest: list[str] = [it for it in TYPES if it not in types]
            if "integer" in types and "number" not in types:
                rest.remove("number")
                yield node.made({"type": "number", Own.NOT_WHOLE: True}, "type")
            if rest:
                yield node.made({"type": rest}, "type")
        if "const" in fields:
            yield node.made({Own.NOT_VALUES: [fields["const"]]}, "const")
        if "enum" in fields:
            yield node.made({Own.NOT_VALUES: fields["enum"]}, "enum")
        if Own.NOT_VALUES in fields:
            yield node.made({"enum": fields[Own.NOT_VALUES]})

    def _numbers(self, node: Node, depth: int) -> Iterator[Node]:
        fields = node.fields
        for plain, (opposite, own) in _BOUNDS.items():
            strict = f"exclusive{plain.capitalize()}"
            if plain in fields and fields.get(strict) is not True:
                yield node.made({"type": "number", opposite: fields[plain]}, plain)
            if (bound := bound_of(node, strict)) is not None:
                turned = {"minimum": "maximum", "maximum": "minimum"}[own]
                yield node.made({"type": "number", turned: bound}, strict)
        if Own.NOT_WHOLE in fields:
            yield node.made({"type": "integer"})

    def _counts(self, node: Node, depth: int) -> Iterator[Node]:
        for of, kind in _COUNTS.items():
            least, most = count_of(node, f"min{of}", 0), count_of(node, f"max{of}", 2**53)
            if least > 0:
                yield node.made({"type": kind, f"max{of}": least - 1}, f"min{of}")
            if most < 2**53:
                yield node.made({"type": kind, f"min{of}": most + 1}, f"max{of}")

    def _strings(self, node: Node) -> Iterator[Node]:
        fields = node.fields
        if "pattern" in fields:
            pattern = pattern_of(node)
            if pattern is None or pattern.unwanted:
                yield self._wide(node, "pattern", {"type": "string"})
            for it in () if pattern is None else pattern.wanted:
                yield node.made({"type": "string", Own.NOT_PATTERN: it}, "pattern")
        if fields.get("format") in FORMATS:
            unwanted = FORMATS[fields["format"]]
            yield node.made({"type": "string", Own.NOT_PATTERN: unwanted}, "format")
        if Own.NOT_PATTERN in fields:
            yield self._wide(node, "pattern", {"type": "string"})

    def _arrays(self, node: Node) -> Iterator[Node]:
        fields = node.fields
        items = fields.get("items")
        prefix = items if isinstance(items, list) else fields.get("prefixItems", [])
        for n, it in enumerate(prefix):
            before = [True] * n
            yield node.made(
                {"type": "array", "minItems": n + 1, "prefixItems": [*before, {"not": it}]}, "items"
            )
        if items is not None and items is not True and not isinstance(items, list):
            if prefix:
                yield self._wide(node, "items", {"type": "array"})
            else:
                yield node.made({"type": "array", "contains": {"not": items}}, "items")
        if "contains" in fields and count_of(node, "minContains", 1) == 1:
            yield node.made({"type": "array", "items": {"not": fields["contains"]}}, "contains")
            if "maxContains" in fields:
                yield self._wide(node, "maxContains", {"type": "array"})
        elif "contains" in fields:
            yield self._wide(node, "contains", {"type": "array"})

    def _objects(self, node: Node) -> Iterator[Node]:
        fields = node.fields
        for key in fields.get("required", ()):
            yield node.made({"type": "object", "properties": {key: False}}, "required")
        for key, it in fields.get("properties", {}).items():
            if it is not True and it != {}:
                inner = {"type": "object", "required": [key], "properties": {key: {"not": it}}}
                yield node.made(inner, "properties")


def _says_something(keyword: str, value: Any) -> bool:
    if keyword == "uniqueItems":
        return value is True
    return value is not None and value is not True and value != {}
