"""JSON schemas made into grammars: what is let through follows the schema, and is said if not."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import numpy as np
import pytest

from isthmus.errors import GrammarError
from isthmus.model.schemas import prepared
from isthmus.model.schemas.keywords import KEYWORDS, Force
from tests.schemas.walking import allows, exact, grammar_of, matcher_of, validator_of, walk

INT: dict[str, Any] = {"type": "integer"}
TEXT: dict[str, Any] = {"type": "string"}
TREE = {
    "type": "object",
    "properties": {"v": INT, "of": {"type": "array", "items": {"$ref": "#/$defs/tree"}}},
    "required": ["v"],
    "additionalProperties": False,
}
KIND_A = {
    "type": "object",
    "properties": {"kind": {"const": "a"}, "x": INT},
    "required": ["kind"],
}
KIND_B = {
    "type": "object",
    "properties": {"kind": {"const": "b"}, "y": TEXT},
    "required": ["kind", "y"],
}

Case = tuple[Any, list[Any], list[Any]]
EXACT: dict[str, Case] = {
    "64 bits": (
        {**INT, "minimum": -(2**63), "maximum": 2**64 - 1},
        [-(2**63), 2**64 - 1, 0, -1],
        [-(2**63) - 1, 2**64],
    ),
    "beyond 2^53": ({**INT, "minimum": 2**53 + 1}, [2**53 + 1, 10**30], [2**53]),
    "exclusive": ({**INT, "exclusiveMinimum": -7, "exclusiveMaximum": 7.5}, [-6, 7], [-7, 8]),
    "draft 4": ({**INT, "minimum": 3, "exclusiveMinimum": True}, [4], [3]),
    "decimals": (
        {"type": "number", "minimum": -1.5, "exclusiveMaximum": 2.25},
        [-1.5, 0, 2.24, 2.2, -0.5],
        [2.25, -1.51, 3, -2],
    ),
    "above 0": ({"type": "number", "exclusiveMinimum": 0}, [0.1, 1, 10], [0, -1, 0.0]),
    "multiples": ({"type": "number", "multipleOf": 0.01, "minimum": 0}, [0.07, 1], [0.075, -1]),
    "two multiples": ({"allOf": [{"multipleOf": 4}, {**INT, "multipleOf": 6}]}, [12, 0], [4, 6]),
    "not": ({"not": {"type": ["string", "integer"]}}, [1.5, None, [1]], ["x", 1]),
    "not a value": ({**TEXT, "not": {"enum": ["a", "b"]}}, ["c", ""], ["a", "b"]),
    "not a pattern": ({**TEXT, "not": {"pattern": "^a"}}, ["b", "ba"], ["a", "ab"]),
    "not both": (
        {"type": "object", "not": {"required": ["a", "b"]}},
        [{"a": 1}],
        [{"a": 1, "b": 1}],
    ),
    "a large constant": ({"const": 2**60 + 1}, [2**60 + 1], [2**60]),
    "values": (
        {"enum": [1, True, None, [1, {"a": 2}], {"b": []}, "é\n"]},
        [1, True, None, [1, {"a": 2}], {"b": []}, "é\n"],
        [2, [1], False],
    ),
    "values of a type": ({"enum": [1, "a", None], "type": ["string", "null"]}, ["a", None], [1]),
    "oneOf that overlaps": ({"oneOf": [INT, {"type": "number"}]}, [1.5], [1]),
    "oneOf by a constant": (
        {"oneOf": [KIND_A, KIND_B]},
        [{"kind": "a", "x": 1}, {"kind": "b", "y": "q"}],
        [{"kind": "b"}, {"kind": "c"}],
    ),
    "anyOf beside": (
        {**KIND_A, "anyOf": [{"required": ["x"]}, {"required": ["z"]}]},
        [{"kind": "a", "x": 1}, {"kind": "a", "z": 1}],
        [{"kind": "a"}],
    ),
    "unique": (
        {"type": "array", "items": {"enum": ["a", "b", "c"]}, "uniqueItems": True, "minItems": 1},
        [["a"], ["b", "a"], ["c", "b", "a"]],
        [[], ["a", "a"]],
    ),
    "contains": (
        {"type": "array", "items": INT, "contains": {"const": 1}, "minItems": 2},
        [[1, 2], [2, 1], [5, 6, 1]],
        [[1], [2, 3]],
    ),
    "least of named": (
        {
            "type": "object",
            "minProperties": 2,
            "additionalProperties": False,
            "properties": {"a": INT, "b": INT, "c": INT},
        },
        [{"a": 1, "b": 2}, {"b": 1, "c": 2}, {"a": 1, "b": 2, "c": 3}],
        [{"a": 1}, {}],
    ),
    "most": (
        {"type": "object", "maxProperties": 1, "properties": {"a": INT}},
        [{"a": 1}, {"z": 1}, {}],
        [{"a": 1, "z": 1}],
    ),
    "patterns that overlap": (
        {
            "type": "object",
            "patternProperties": {"^a": INT, "b$": {"type": "number", "maximum": 5}},
        },
        [{"ab": 1}, {"a": 9}, {"xb": 1.5}, {"z": "q"}],
        [{"ab": 9}, {"a": 1.5}, {"xb": 7}],
    ),
    "an escaped key": (
        {"type": "object", "properties": {"a": INT}},
        [{"a": 1}],
        ['{"\\u0061": "x"}'],
    ),
    "a key twice": ({"type": "object", "properties": {"a": INT}}, [], ['{"a": 1, "a": "x"}']),
    "names listed": (
        {"type": "object", "propertyNames": {"enum": ["x", "y"]}},
        [{"x": 1}, {"x": 1, "y": 2}, {}],
        [{"z": 1}],
    ),
    "names": (
        {"type": "object", "propertyNames": {"pattern": "^[a-z]+$", "maxLength": 3}},
        [{"abc": 1}],
        [{"abcd": 1}, {"A": 1}],
    ),
    "if": (
        {**INT, "if": {"minimum": 10}, "then": {"multipleOf": 5}, "else": {"maximum": 3}},
        [10, 15, 3, -1],
        [11, 4],
    ),
    "dependent": (
        {"type": "object", "dependentRequired": {"a": ["b"]}},
        [{"b": 1}, {"a": 1, "b": 1}, {}],
        [{"a": 1}],
    ),
    "dependent schemas": (
        {"type": "object", "dependencies": {"a": {"properties": {"b": INT}}}},
        [{"b": "x"}, {"a": 1, "b": 1}],
        [{"a": 1, "b": "x"}],
    ),
    "a tree": (
        {"$ref": "#/$defs/tree", "$defs": {"tree": TREE}},
        [{"v": 1, "of": [{"v": 2, "of": []}]}],
        [{"of": []}, {"v": 1, "of": [{}]}],
    ),
    "itself": (
        {"properties": {"v": INT, "next": {"$ref": "#"}}, "type": "object"},
        [{"v": 1, "next": {"v": 2, "next": {}}}],
        [{"next": {"v": "x"}}],
    ),
    "pointers": (
        {"properties": {"a~/%": INT, "b": {"$ref": "#/properties/a~0~1%25"}}},
        [{"b": 1}],
        [{"b": "x"}],
    ),
    "an id": (
        {"$defs": {"a": {"$id": "http://x.invalid/y", **INT}}, "$ref": "http://x.invalid/y"},
        [1],
        ["x"],
    ),
    "an anchor": ({"$defs": {"a": {"$anchor": "q", **INT}}, "$ref": "#q"}, [1], ["x"]),
    "beside a reference": ({"$defs": {"a": INT}, "$ref": "#/$defs/a", "minimum": 3}, [3], [2]),
    "not beside one": (
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "definitions": {"a": INT},
            "$ref": "#/definitions/a",
            "minimum": 3,
        },
        [2],
        ["x"],
    ),
    "allOf": (
        {
            "allOf": [{"properties": {"a": INT}, "required": ["a"]}, {"properties": {"b": INT}}],
            "type": "object",
            "unevaluatedProperties": False,
        },
        [{"a": 1, "b": 2}],
        [{"b": 1}, {"a": 1, "c": 1}],
    ),
    "nullable": ({**TEXT, "nullable": True}, [None, "x"], [1]),
    "a tuple": (
        {"type": "array", "prefixItems": [INT, TEXT], "items": False},
        [[1, "x"], [1], []],
        [[1, "x", 2], ["x"]],
    ),
    "an old tuple": (
        {"type": "array", "items": [INT, TEXT], "additionalItems": INT},
        [[1, "x", 2]],
        [[1, "x", "y"]],
    ),
    "true": (True, [1, None, {"a": [1]}], []),
    "annotations": (
        {**INT, "format": "int32", "x-unit": "m", "title": 5, "deprecated": True},
        [1],
        ["x"],
    ),
    "characters": ({**TEXT, "minLength": 1, "maxLength": 2}, ["😀😀", "a"], ["", "abc"]),
    "a pattern's classes": (
        {**TEXT, "pattern": "^\\d{2,3}-[a-z&b\\]]+$|x"},
        ["12-a&]", "axb"],
        ["1-a", "1"],
    ),
    "what a dependent key evaluates": (
        {
            "type": "object",
            "dependentSchemas": {"a": {"properties": {"b": INT}}, "c": {}},
            "unevaluatedProperties": False,
        },
        [{}],
        [{"a": 1}, {"c": 1}, {"b": 1}],
    ),
    "lookaheads": (
        {**TEXT, "pattern": "^(?!\\.)(?!.*\\.\\.)(?=.{2,4}$)[a-z.]*$"},
        ["a.b", "ab"],
        [".a", "a..b", "a", "abcde"],
    ),
    "no set operations": ({**TEXT, "pattern": "^[a-d&&c-z]$"}, ["a", "z", "&"], ["1", ""]),
    "dates": (
        {**TEXT, "format": "date"},
        ["2024-02-29", "2000-02-29"],
        ["2023-02-29", "1900-02-29"],
    ),
}


NOT_VALIDATED = ("draft 4", "nullable", "an old tuple", "no set operations")
"""Cases that the validator, which goes by the newest draft, reads in another way."""


@pytest.mark.parametrize("name", EXACT)
def test_what_follows_a_schema_is_let_through_and_nothing_else(name: str) -> None:
    schema, good, bad = EXACT[name]
    made = grammar_of(schema)
    assert made.warnings == ()
    matcher = matcher_of(made.lark)
    for value in good:
        assert allows(matcher, json.dumps(value, ensure_ascii=False)), value
    for value in bad:
        text = value if isinstance(value, str) and value[:1] == "{" else json.dumps(value)
        assert not allows(matcher, text), text
    rng, validator = np.random.default_rng(1), validator_of(schema)
    for _ in range(5):
        text = walk(matcher, rng)
        if text is not None and name not in (
            "draft 4",
            "nullable",
            "an old tuple",
            "no set operations",
        ):
            assert not list(validator.iter_errors(exact(text))), text


WARNED = [
    ({"type": "array", "items": TEXT, "uniqueItems": True}, "#: uniqueItems"),
    ({"properties": {"a": {**TEXT, "format": "iri"}}}, "#/properties/a: the format iri"),
    ({**INT, "multipleOf": 2018}, "#: of multipleOf, multiples of 2 "),
    ({**INT, "multipleOf": 3, "maximum": 2**60}, "#: with multipleOf"),
    (
        {"oneOf": [{"type": "array", "uniqueItems": True}, {"type": "array", "minItems": 2}]},
        "#/oneOf/0",
    ),
    ({"not": {"patternProperties": {"^a": INT}}}, "#/not: the opposite of patternProperties"),
    ({**TEXT, "format": "date", "pattern": "a(?=b)"}, "#: the pattern is not enforced"),
    ({"contains": INT, "minContains": 2}, "#: of minContains, 1"),
    ({"contains": INT, "maxContains": 2}, "#: maxContains"),
    ({"type": "object", "minProperties": 2}, "#: minProperties"),
    (
        {"type": "object", "patternProperties": {f"^{it}": INT for it in "abcde"}},
        "#: of patternProp",
    ),
]


@pytest.mark.parametrize(("schema", "said"), WARNED, ids=lambda it: str(it)[:40])
def test_what_is_not_enforced_is_named(schema: Any, said: str) -> None:
    assert any(it.startswith(said) for it in grammar_of(schema).warnings), grammar_of(schema)


def _explosive(n: int) -> dict[str, Any]:
    pairs = [{"anyOf": [{"minLength": i}, {"maxLength": 99 - i}]} for i in range(n)]
    return {"type": "string", "allOf": pairs}


def _nested(n: int) -> str:
    return '{"properties": {"a": ' * n + "{}" + "}}" * n


REFUSED: dict[str, tuple[str, str]] = {
    "a circle": (
        json.dumps({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}),
        r"#/\$defs/a: .*itself",
    ),
    "a circle of choices": (json.dumps({"anyOf": [{"$ref": "#"}, INT]}), "#: it refers to itself"),
    "without an end": (
        json.dumps({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}),
        "#: no value",
    ),
    "false": ("false", "#: no value"),
    "contradiction": (json.dumps({"allOf": [INT, TEXT]}), "#: no value"),
    "another document": (
        json.dumps({"items": {"$ref": "https://json-schema.org/draft-07/schema#"}}),
        "#/items: .*fetched",
    ),
    "nothing": (json.dumps({"items": {"$ref": "#/$defs/x"}}), "#/items: .*names nothing"),
    "no schema": (json.dumps({"properties": {"a": [1]}}), "#: properties is an object of schemas"),
    "no type": (json.dumps({"items": {"type": "any"}}), "#/items: there is no type"),
    "no list": (json.dumps({"required": "a"}), "#: required is a list of texts"),
    "a lookahead": (
        json.dumps({"properties": {"é/": {"pattern": "a(?=b)"}}}),
        "#/properties/é~1: .*lookaround",
    ),
    "a reference": (
        json.dumps({"propertyNames": {"pattern": "(a)\\1"}}),
        r"#/propertyNames: .*\\1",
    ),
    "a boundary": (json.dumps({"pattern": "a\\b"}), r"#: .*\\b"),
    "half a pair": (json.dumps({"properties": {"\ud800": INT}}), "#.*half of a surrogate"),
    "half a pair as a value": (json.dumps({"enum": ["\udc00"]}), "#: .*half of a surrogate"),
    "choices of choices": (
        json.dumps(_explosive(40)),
        "#.*: the schema is too large or too intricate",
    ),
    "nested": (_nested(10_000), "nested"),
    "not so nested": (_nested(150), "#/properties/a/.*nested more than 100"),
    "a long bound": (
        json.dumps({"type": "number", "maximum": 10**500}),
        "#: maximum has more than 400",
    ),
    "no JSON": ("{", "is not JSON"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_and_says_where(name: str) -> None:
    source, said = REFUSED[name]
    began = time.process_time()
    with pytest.raises(GrammarError, match=said):
        prepared(source)
    assert time.process_time() - began < 30  # it ends


def test_many_values_and_alternatives_are_one_terminal_or_refused() -> None:
    """10,000 alternatives are made into a grammar; it is tried out like all others."""
    values = grammar_of({"enum": [f"v{n}" for n in range(10_000)]})
    objects = [{"properties": {f"k{n}": {"const": n}}, "required": [f"k{n}"]} for n in range(1000)]
    assert values.warnings == ()
    assert values.lark.count("\n") < 10
    assert len(grammar_of({"type": "object", "anyOf": objects}).lark) > 1000


def test_a_key_with_a_zero_byte() -> None:
    matcher = matcher_of(
        grammar_of({"type": "object", "properties": {"\0": INT}, "required": ["\0"]}).lark
    )
    assert allows(matcher, '{"\\u0000": 1}')


def test_a_long_object_of_optional_keys() -> None:
    properties = {f"k{n}": INT for n in range(400)}
    matcher = matcher_of(
        grammar_of({"type": "object", "properties": properties, "additionalProperties": False}).lark
    )
    for keys in itertools.combinations((0, 1, 300, 399), 2):
        assert allows(matcher, json.dumps({f"k{n}": 1 for n in keys}))


def test_each_keyword_of_the_table_has_a_case() -> None:
    """What the table says is enforced is in a schema above."""
    said = json.dumps([EXACT[it][0] for it in EXACT]) + json.dumps([it for it, _ in WARNED])
    said += "".join(source for source, _ in REFUSED.values())
    done = [it for it, row in KEYWORDS.items() if row.force in (Force.ENFORCED, Force.PARTLY)]
    left = {it for it in done if f'"{it}"' not in said}
    assert left <= {
        "$dynamicRef",
        "$recursiveRef",
        "unevaluatedItems",
        "maxItems",
        "dependentSchemas",
    }
