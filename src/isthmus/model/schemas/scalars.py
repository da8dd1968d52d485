"""Strings and numbers of a term as expressions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor, gcd
from typing import Any

from isthmus.model.schemas.document import Node, refuse
from isthmus.model.schemas.evaluation import (
    BOUNDS,
    Own,
    bound_of,
    count_of,
    is_whole,
    number_of,
    pattern_of,
    type_of,
)
from isthmus.model.schemas.expression import NEVER, Expression, Rule, Seq, Terminal, Text, seq
from isthmus.model.schemas.formats import FORMATS, NOT_FOLLOWED
from isthmus.model.schemas.numbers import (
    INTEGER,
    NUMBER,
    at_least,
    at_most,
    exactly,
    integers,
)
from isthmus.model.schemas.terms import Term

LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""A small model that may write spaces between any two words writes little else."""
COMMA, COLON = Text(", "), Text(": ")
_UNESCAPED = r'[^"\\\x00-\x1f\x7f]'
_PLAIN = r"-?(0|[1-9][0-9]*)(\.[0-9]+)?"
_FRACTION = r"-?(0|[1-9][0-9]*)\.[0-9]*[1-9][0-9]*"
_EXACT = 2**53
_MAX_DIGITS = 400
_MAX_MULTIPLE = 1000
"""Greatest number whose multiples are told from others digit by digit: a state for each rest."""
_MAX_PLACES = 9

Warn = Callable[[Node, str], None]


def json_rule(schema: dict[str, Any]) -> Rule:
    """A value of a schema that llguidance follows by itself."""
    return Rule("%json " + json.dumps({**schema, "x-guidance": LAYOUT}))


def literal(node: Node, value: Any) -> Expression:
    """A value as it is written. Brackets are apart: the lexer knows each by itself."""
    if isinstance(value, list):
        return _joined("[", [literal(node, it) for it in value], "]")
    if isinstance(value, dict):
        members = [seq(quoted(node, key), COLON, literal(node, it)) for key, it in value.items()]
        return _joined("{", members, "}")
    if isinstance(value, str):
        return quoted(node, value)
    if type_of(value) == "number" and not number_of(value).is_finite():
        refuse(node, "a number is too large")
    return Text(json.dumps(value))


def listed(node: Node, values: Sequence[Any]) -> list[Expression]:
    """Values as alternatives; those that are no lists or objects are one terminal."""
    said = [literal(node, it) for it in values]
    words = [it for it in said if isinstance(it, Text)]
    rest = [it for it in said if not isinstance(it, Text)]
    if len(words) < 2:
        return [*words, *rest]
    return [Terminal(" | ".join(json.dumps(x.text, ensure_ascii=False) for x in words)), *rest]


def quoted(node: Node, text: str) -> Text:
    """A text in quotes. GrammarError if UTF-8 cannot have it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        refuse(node, "a text has half of a surrogate pair")
    return Text(json.dumps(text, ensure_ascii=False))


def _joined(opening: str, parts: Sequence[Expression], closing: str) -> Expression:
    found: list[Expression] = [Text(opening)]
    for n, it in enumerate(parts):
        found += [COMMA, it] if n else [it]
    return Seq((*found, Text(closing)))


def regex(expression: str) -> str:
    """An expression as a terminal's."""
    return "/" + expression.replace("/", r"\x2f") + "/"


# ------------------------------------------------------------------------------------ strings


@dataclass
class Strings:
    """What a term says of strings."""

    least: int
    most: int | None
    wanted: list[str]
    """Expressions that all match it."""
    unwanted: list[str]
    values: list[str]
    """Texts that it must not be."""

    @property
    def says_nothing(self) -> bool:
        return not (self.least or self.wanted or self.unwanted or self.values) and self.most is None

    def terminal(self) -> str:
        """The text without quotes, in which nothing needs an escape."""
        most = "" if self.most is None else self.most
        parts = [f"/{_UNESCAPED}{{{self.least},{most}}}/", *map(regex, self.wanted)]
        unwanted = [*map(regex, self.unwanted), *literals(self.values)]
        return " & ".join([*parts, *([f"~({' | '.join(unwanted)})"] if unwanted else [])])


def literals(values: Sequence[str]) -> list[str]:
    """Texts in which nothing needs an escape, as parts of a terminal; all others are left out."""
    plain = [it for it in values if json.dumps(it, ensure_ascii=False) == f'"{it}"']
    return [json.dumps(it, ensure_ascii=False) if it else '""' for it in plain]


def strings_of(term: Term, warn: Warn) -> Strings | None:
    """What a term says of strings; None if it allows none."""
    found = Strings(0, None, [], [], [])
    for it in term.parts:
        node, fields = it.node, it.node.fields
        found.least = max(found.least, count_of(node, "minLength", 0))
        most = count_of(node, "maxLength", _EXACT)
        if most < _EXACT:
            found.most = min(most, _EXACT if found.most is None else found.most)
        if "pattern" in fields:
            pattern = pattern_of(node)
            if pattern is None:
                warn(node, f"the pattern is not enforced, but the format {fields['format']} is")
            else:
                found.wanted += pattern.wanted
                found.unwanted += pattern.unwanted
        if fields.get("format") in FORMATS:
            found.wanted.append(FORMATS[fields["format"]])
        elif fields.get("format") in NOT_FOLLOWED:
            warn(node, f"the format {fields['format']} is not enforced")
        if Own.NOT_PATTERN in fields:
            found.unwanted.append(fields[Own.NOT_PATTERN])
        found.values += [x for x in fields.get(Own.NOT_VALUES, ()) if isinstance(x, str)]
    return None if found.most is not None and found.least > found.most else found


def string_of(term: Term, warn: Warn) -> Expression:
    """Strings of a term."""
    said = strings_of(term, warn)
    if said is None:
        return NEVER
    if said.unwanted or said.values:
        return Terminal(f'"\\"" ({said.terminal()}) "\\""')
    schema: dict[str, Any] = {"type": "string"}
    if said.least:
        schema["minLength"] = said.least
    if said.most is not None:
        schema["maxLength"] = said.most
    if said.wanted:
        schema["allOf"] = [{"pattern": f"^(?:{it})$"} for it in dict.fromkeys(said.wanted)]
    return json_rule(schema)


# ------------------------------------------------------------------------------------ numbers


@dataclass
class _Numbers:
    node: Node
    """The schema that is told of in warnings."""
    is_whole: bool
    least: tuple[Decimal, bool] | None = None
    """The bound, and whether it is none of the numbers."""
    most: tuple[Decimal, bool] | None = None
    multiple: Fraction | None = None
    not_whole: bool = False
    values: tuple[Decimal, ...] = ()


def number_of_term(term: Term, warn: Warn) -> Expression:
    """Numbers of a term."""
    said = _numbers_of(term)
    if said.multiple is not None and said.multiple.denominator == 1:
        said.is_whole = True
    if said.is_whole and said.not_whole:
        return NEVER
    if said.multiple is not None and not (said.is_whole and said.multiple == 1):
        return _multiples(said, warn)
    return _whole(said) if said.is_whole else _real(said)


def _numbers_of(term: Term) -> _Numbers:
    found = _Numbers(term.parts[0].node, term.is_whole)
    if term.is_whole:
        found.multiple = Fraction(1)
    for it in term.parts:
        node, fields = it.node, it.node.fields
        for keyword, (sign, strict) in BOUNDS.items():
            bound = bound_of(node, keyword)
            if bound is None:
                continue
            _require_short(node, keyword, bound)
            if sign < 0:
                found.least = max(found.least or (bound, strict), (bound, strict))
            else:
                other = found.most or (bound, strict)
                found.most = min(other, (bound, strict), key=lambda x: (x[0], not x[1]))
        if "multipleOf" in fields:
            found.node = node
            found.multiple = _common(found.multiple, Fraction(number_of(fields["multipleOf"])))
        found.not_whole = found.not_whole or Own.NOT_WHOLE in fields
        unwanted = fields.get(Own.NOT_VALUES, ())
        found.values += tuple(number_of(x) for x in unwanted if type_of(x) == "number")
    return found


def _require_short(node: Node, keyword: str, bound: Decimal) -> None:
    if len(f"{bound:f}") > _MAX_DIGITS:
        refuse(node, f"{keyword} has more than {_MAX_DIGITS} digits")


def _common(one: Fraction | None, other: Fraction) -> Fraction:
    """The least number that is a multiple of both."""
    if one is None:
        return other
    a, b = one.numerator * other.denominator, other.numerator * one.denominator
    return Fraction(a * b // gcd(a, b), one.denominator * other.denominator)


def _edges(said: _Numbers) -> tuple[int | None, int | None]:
    """The least and the greatest whole number."""
    least = most = None
    if said.least is not None:
        value, strict = said.least
        least = ceil(value) + (strict and value == ceil(value))
    if said.most is not None:
        value, strict = said.most
        most = floor(value) - (strict and value == floor(value))
    return least, most


def _whole(said: _Numbers) -> Expression:
    least, most = _edges(said)
    found = INTEGER if least is None and most is None else integers(least, most)
    if found is None:
        return NEVER
    unwanted = [f'"{int(it)}"' for it in said.values if is_whole(it)]
    return Terminal(f"/{found}/" + (f" & ~({' | '.join(unwanted)})" if unwanted else ""))


def _real(said: _Numbers) -> Expression:
    if said.least is None and said.most is None and not said.values and not said.not_whole:
        return Terminal(f"/{NUMBER}/")
    parts = [f"/{_FRACTION if said.not_whole else _PLAIN}/"]
    unwanted = [exactly(it) for it in said.values]
    for bound, within in ((said.least, at_least), (said.most, at_most)):
        if bound is not None:
            parts.append(f"/{within(bound[0])}/")
            if bound[1]:
                unwanted.append(exactly(bound[0]))
    if said.least and said.most:
        (low, low_strict), (high, high_strict) = said.least, said.most
        if low > high or (low == high and (low_strict or high_strict)):
            return NEVER
    if unwanted:
        parts.append(f"~({' | '.join(f'/{it}/' for it in unwanted)})")
    return Terminal(" & ".join(parts))


def _multiples(said: _Numbers, warn: Warn) -> Expression:
    multiple = said.multiple or Fraction(1)
    places, scaled = 0, multiple
    while scaled.denominator != 1 and places <= _MAX_PLACES:
        scaled, places = scaled * 10, places + 1
    least, most = _edges(said)
    if least is not None and most is not None and least > most + 1:
        return NEVER
    if scaled.denominator != 1 or said.values or said.not_whole:
        warn(said.node, "multipleOf is not enforced with what is beside it")
        return _whole(said) if said.is_whole else _real(said)
    if scaled > _MAX_MULTIPLE:
        near = next(n for n in range(_MAX_MULTIPLE, 0, -1) if scaled % n == 0)
        multiple = Fraction(near, 10**places)
        warn(said.node, f"of multipleOf, multiples of {float(multiple):.9g} are enforced")
    schema: dict[str, Any] = {"type": "integer" if said.is_whole else "number"}
    schema["multipleOf"] = int(multiple) if said.is_whole else float(multiple)
    for name, bound, sign in (("Minimum", said.least, -1), ("Maximum", said.most, 1)):
        if bound is None:
            continue
        value, strict = bound
        if abs(value) > _EXACT:
            if value * sign < 0:
                return NEVER
            warn(said.node, f"with multipleOf, numbers beyond {sign * _EXACT} are not written")
            value, strict = Decimal(sign * _EXACT), False
        number = float(value) if value != int(value) else int(value)
        if number_of(number) != value:
            warn(said.node, f"with multipleOf, {name.lower()} is rounded")
        schema[f"exclusive{name}" if strict else name.lower()] = number
    return json_rule(schema)
