"""Whether a value follows a schema, for the values that `const` and `enum` list."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from typing import Any

from isthmus.model.schemas.document import Document, Node, refuse
from isthmus.model.schemas.formats import FORMATS
from isthmus.model.schemas.patterns import Matching, Pattern, PatternError, read_pattern, whole

TYPES = ("null", "boolean", "number", "string", "array", "object")
_MAX_DEPTH = 60


class Own(Enum):
    """Keywords that only prepared schemas have, for what `not` comes to."""

    NOT_VALUES = "values that it must not be"
    NOT_PATTERN = "an expression that must not match it"
    NOT_WHOLE = "a number must not be whole"


def type_of(value: object) -> str:
    """The JSON type of a decoded value; a whole number is a number."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    names = {int: "number", float: "number", Decimal: "number", str: "string", list: "array"}
    return names.get(type(value), "object")


def number_of(value: Any) -> Decimal:
    """A number, exactly as it was written or as near as JSON's reader left it."""
    return Decimal(repr(value)) if isinstance(value, float) else Decimal(value)


def is_whole(value: Any) -> bool:
    """Whether a value is an integer for JSON Schema."""
    if type_of(value) != "number":
        return False
    number = number_of(value)
    return number.is_finite() and number == number.to_integral_value()


def key_of(value: Any) -> str:
    """A text that equal values have in common: 1 and 1.0, objects in any order."""
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    if type_of(value) == "number":
        number = number_of(value)
        return ["n", str(number.normalize()) if number.is_finite() else str(number)]
    if isinstance(value, list):
        return ["l", *map(_plain, value)]
    if isinstance(value, Mapping):
        return {key: _plain(it) for key, it in value.items()}
    return value


def types_of(node: Node) -> set[str] | None:
    """The types that `type` allows, "integer" among them; None if it says nothing."""
    said = node.fields.get("type")
    if said is None:
        return None
    found = (
        set(said) if isinstance(said, list) and all(isinstance(x, str) for x in said) else {said}
    )
    if node.fields.get("nullable") is True:
        found.add("null")
    for it in found:
        if not isinstance(it, str) or it not in (*TYPES, "integer"):
            refuse(node, f"there is no type {json.dumps(it, default=str)[:60]}")
    return found


def fits_type(node: Node, value: Any) -> bool:
    """Whether `type` allows a value."""
    types = types_of(node)
    return types is None or type_of(value) in types or ("integer" in types and is_whole(value))


class Evaluation:
    """See the module."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._matching = Matching()
        self._listed: dict[tuple[Node, str | Own], frozenset[str]] = {}

    def follows(self, value: Any, node: Node, depth: int = 0) -> bool:
        """Whether a value follows a schema, but for `unevaluated…`, which are left out."""
        self._document.spend(node)
        if depth > _MAX_DEPTH:
            refuse(node, "schemas or values are nested too deeply")
        if not isinstance(node.value, Mapping):
            return bool(node.value)
        return (
            self._fits_values(value, node)
            and self._fits_others(value, node, depth + 1)
            and self._fits_kind(value, node, depth + 1)
        )

    def matches(self, node: Node, expression: str, text: str) -> bool:
        """Whether a text matches an expression. GrammarError."""
        self._document.spend(node, 1 + len(text) // 16)
        try:
            return self._matching.matches(expression, text)
        except (PatternError, ValueError) as error:
            refuse(node, str(error))

    def _fits_values(self, value: Any, node: Node) -> bool:
        fields = node.fields
        if not fits_type(node, value):
            return False
        if "const" in fields and key_of(value) != key_of(fields["const"]):
            return False
        if "enum" in fields and key_of(value) not in self._keys_of(node, "enum"):
            return False
        return Own.NOT_VALUES not in fields or key_of(value) not in self._keys_of(
            node, Own.NOT_VALUES
        )

    def _keys_of(self, node: Node, keyword: str | Own) -> frozenset[str]:
        """The values that a keyword lists."""
        if (node, keyword) not in self._listed:
            values = node.fields[keyword]
            self._document.spend(node, len(values))
            self._listed[node, keyword] = frozenset(map(key_of, values))
        return self._listed[node, keyword]

    def _fits_others(self, value: Any, node: Node, depth: int) -> bool:
        def of(keyword: str) -> list[bool]:
            n = len(node.fields.get(keyword, ()))
            return [self.follows(value, node.child(keyword, i), depth) for i in range(n)]

        fields = node.fields
        for keyword in ("$ref", "$dynamicRef", "$recursiveRef"):
            if keyword in fields:
                target = self._document.resolved(node, keyword)
                if not self.follows(value, target, depth):
                    return False
        good = all(of("allOf")) and ("anyOf" not in fields or any(of("anyOf")))
        good = good and ("oneOf" not in fields or sum(of("oneOf")) == 1)
        if "not" in fields:
            good = good and not self.follows(value, node.child("not"), depth)
        if "if" in fields:
            then = "then" if self.follows(value, node.child("if"), depth) else "else"
            good = good and (then not in fields or self.follows(value, node.child(then), depth))
        return good

    def _fits_kind(self, value: Any, node: Node, depth: int) -> bool:
        tests: dict[str, Callable[[Any, Node, int], bool]] = {
            "number": self._fits_number,
            "string": self._fits_string,
            "array": self._fits_array,
            "object": self._fits_object,
        }
        test = tests.get(type_of(value))
        return test is None or test(value, node, depth)

    def _fits_number(self, value: Any, node: Node, depth: int) -> bool:
        fields, number = node.fields, number_of(value)
        for keyword, (sign, strict) in BOUNDS.items():
            bound = bound_of(node, keyword)
            if bound is not None:
                over = (number - bound) * sign
                if over > 0 or (strict and over == 0):
                    return False
        multiple = fields.get("multipleOf")
        if multiple is not None and Fraction(number) % Fraction(number_of(multiple)) != 0:
            return False
        return not (fields.get(Own.NOT_WHOLE) and is_whole(value))

    def _fits_string(self, value: Any, node: Node, depth: int) -> bool:
        fields = node.fields
        if not count_of(node, "minLength", 0) <= len(value) <= count_of(node, "maxLength", 2**53):
            return False
        pattern = pattern_of(node) if "pattern" in fields else None
        if pattern is not None:
            good = all(self.matches(node, it, value) for it in pattern.wanted)
            if not good or any(self.matches(node, it, value) for it in pattern.unwanted):
                return False
        form = FORMATS.get(str(fields.get("format")))
        if form is not None and not self.matches(node, form, value):
            return False
        unwanted = fields.get(Own.NOT_PATTERN)
        return unwanted is None or not self.matches(node, unwanted, value)

    def _fits_array(self, value: Any, node: Node, depth: int) -> bool:
        fields, n = node.fields, len(value)
        if not count_of(node, "minItems", 0) <= n <= count_of(node, "maxItems", 2**53):
            return False
        if fields.get("uniqueItems") is True and len({key_of(it) for it in value}) < n:
            return False
        for index, it in enumerate(value):
            schema = item_of(node, index)
            if schema is not None and not self.follows(it, schema, depth):
                return False
        if "contains" in fields:
            schema = node.child("contains")
            found = sum(self.follows(it, schema, depth) for it in value)
            return count_of(node, "minContains", 1) <= found <= count_of(node, "maxContains", 2**53)
        return True

    def _fits_object(self, value: Any, node: Node, depth: int) -> bool:
        fields, n = node.fields, len(value)
        least, most = count_of(node, "minProperties", 0), count_of(node, "maxProperties", 2**53)
        if not least <= n <= most or not all(it in value for it in fields.get("required", ())):
            return False
        for key, it in value.items():
            names = [node.child("propertyNames")] if "propertyNames" in fields else []
            if not all(self.follows(key, x, depth) for x in names):
                return False
            if not all(self.follows(it, x, depth) for x in self.members_of(node, key)):
                return False
        return all(
            key not in value
            or (
                all(it in value for it in wanted)
                if isinstance(wanted, list)
                else self.follows(value, node.child(keyword, key), depth)
            )
            for keyword in ("dependentRequired", "dependentSchemas", "dependencies")
            for key, wanted in fields.get(keyword, {}).items()
        )

    def members_of(self, node: Node, key: str) -> list[Node]:
        """The schemas that one object's keywords have for a key."""
        fields, found = node.fields, []
        if key in fields.get("properties", ()):
            found.append(node.child("properties", key))
        for pattern in fields.get("patternProperties", ()):
            if self.matches(node, expression_of(node, pattern), key):
                found.append(node.child("patternProperties", pattern))
        if not found and "additionalProperties" in fields:
            found.append(node.child("additionalProperties"))
        return found


BOUNDS = {
    "minimum": (-1, False),
    "exclusiveMinimum": (-1, True),
    "maximum": (1, False),
    "exclusiveMaximum": (1, True),
}
"""On which side of a bound numbers must not be, and whether they may be on it."""


def bound_of(node: Node, keyword: str) -> Decimal | None:
    """A bound of numbers; None if there is none. GrammarError."""
    value = node.fields.get(keyword)
    if isinstance(value, bool) and keyword.startswith("exclusive"):  # as until draft 4
        plain = keyword.removeprefix("exclusive").lower()
        return bound_of(node, plain) if value else None
    if value is None:
        return None
    if type_of(value) != "number":
        refuse(node, f"{keyword} is no number")
    number = number_of(value)
    return number if number.is_finite() else None


def count_of(node: Node, keyword: str, default: int) -> int:
    """A number of characters, items or properties. GrammarError."""
    value = node.fields.get(keyword)
    if value is None:
        return default
    if not is_whole(value) or value < 0:
        refuse(node, f"{keyword} is a whole number that is not negative")
    return min(int(value), 2**53)


def pattern_of(node: Node) -> Pattern | None:
    """What `pattern` says; None if it cannot be followed beside a format that is. GrammarError if
    it cannot be followed otherwise."""
    pattern = node.fields["pattern"]
    try:
        return read_pattern(pattern)
    except PatternError as error:
        if node.fields.get("format") in FORMATS:
            return None
        refuse(node, f"pattern {json.dumps(pattern)[:100]}: {error}")


def expression_of(node: Node, pattern: Any) -> str:
    """The expression of a pattern, of whole texts. GrammarError."""
    if not isinstance(pattern, str):
        refuse(node, "a pattern is a text")
    try:
        return whole(pattern)
    except PatternError as error:
        refuse(node, f"pattern {json.dumps(pattern)[:100]}: {error}")


def item_of(node: Node, index: int) -> Node | None:
    """The schema that one array's keywords have for an item; None if they have none."""
    fields = node.fields
    prefix = "items" if isinstance(fields.get("items"), list) else "prefixItems"
    rest = "additionalItems" if prefix == "items" else "items"
    if index < len(fields.get(prefix, ())):
        return node.child(prefix, index)
    return node.child(rest) if rest in fields else None
