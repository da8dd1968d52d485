"""What is wrong with a body, in the words of OpenAI's API: where, what was expected, what came.

msgspec stops at the first thing that is wrong, and says what it expected and where. What came is
looked up in the body, and values that would do are looked up in the type.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect

_AT = " - at `"
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")
_TYPE = re.compile(r"Expected `(?P<expected>[^`]*)`(?:, got `(?P<got>[^`]*)`)?")
_BOUND = re.compile(r"Expected `(?P<kind>int|float)` (?P<sign>[<>]=?) (?P<bound>\S+)")
_LENGTH = re.compile(r"Expected `(?P<kind>str|array|object)` of length (?P<sign>[<>]=) (?P<n>\d+)")
_VALUE = re.compile(r"Invalid (?:enum )?value (?P<value>.*)", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]*)`")
_KINDS = {
    "bool": "a boolean",
    "int": "an integer",
    "float": "a decimal",
    "str": "a string",
    "array": "an array",
    "object": "an object",
    "null": "null",
}
_PYTHON_KINDS = {
    bool: "bool",
    int: "int",
    float: "float",
    str: "str",
    list: "array",
    dict: "object",
}
_NOUNS = {"int": "integer", "float": "decimal", "str": "string", "array": "array"}
_SIDES = {"<": "above_max", ">": "below_min"}
_SAID = {"<": "above maximum", ">": "below minimum"}
_MAX_SHOWN = 80
"""Characters of a value that are told again."""


class Fault(NamedTuple):
    """What is wrong with a body."""

    said: str
    code: str | None
    param: str | None
    """The place of the part that is wrong, as `messages[0].role`; None for the whole body."""


class Place(NamedTuple):
    """A part of a body."""

    path: str
    value: Any


def fault_of(error: msgspec.ValidationError, given: Any, kind: Any) -> Fault:
    """What is wrong with `given`, which was read from JSON, as a `kind`."""
    text, steps, is_key = _read(error)
    places = [*_places(given, steps)]
    if is_key:
        places = [Place(it.path, key) for it in places for key in it.value]
    if found := _LENGTH.fullmatch(text):
        return _length_fault(found, places, steps, "Invalid key in" if is_key else "Invalid")
    if found := _BOUND.fullmatch(text):
        return _bound_fault(found, places, steps)
    if found := _TYPE.fullmatch(text):
        return _type_fault(found, places, steps)
    path = _path(steps)
    if found := _MISSING.fullmatch(text):
        param = f"{path}.{found['name']}".removeprefix(".")
        return Fault(f"Missing required parameter: '{param}'.", "missing_required_parameter", param)
    if found := _VALUE.fullmatch(text):
        return Fault(_value_fault(found["value"], path, kind, steps), "invalid_value", path)
    said = f"{_named('Invalid', path)}: {text[:1].lower()}{text[1:]}."
    return Fault(said, None, path or None)


def place_of(error: msgspec.ValidationError) -> tuple[str, str]:
    """What msgspec says, and where: as `tools[0].name`, empty for the whole body."""
    text, steps, _ = _read(error)
    return text, _path(steps)


def value_at(given: Any, path: str) -> Any:
    """The part of a body at a path; None if it has none."""
    return next((it.value for it in _places(given, _steps(path))), None)


def _read(error: msgspec.ValidationError) -> tuple[str, list[str], bool]:
    """What msgspec says, the steps to the place, and whether that is a key of an object there."""
    text, at, where = str(error).rpartition(_AT)
    if not at:
        return where, [], False
    is_key, where = where.startswith("key`"), where.removeprefix("key` in `")
    return text, _steps(where.removesuffix("`").removeprefix("$")), is_key


# ---------------------------------------------------------------------------------- places


def _steps(path: str) -> list[str]:
    """The names of fields, and the indices in brackets, on the way to a place."""
    dotted = path if path.startswith("[") else f".{path.removeprefix('.')}"
    return [name or f"[{index}]" for name, index in _STEP.findall(dotted)]


def _path(steps: Sequence[str]) -> str:
    said = "".join(it if it.startswith("[") else f".{it}" for it in steps)
    return said.removeprefix(".").removesuffix("[...]")


def _places(given: Any, steps: Sequence[str]) -> Iterator[Place]:
    """The part that steps lead to; several if a step stands for any member of an object."""
    found = [Place("", given)]
    for step in steps:
        found = [it for place in found for it in _inside(place, step)]
    yield from found


def _inside(place: Place, step: str) -> Iterator[Place]:
    path, value = place
    if step == "[...]" and isinstance(value, dict):
        yield from (Place(f"{path}.{key[:_MAX_SHOWN]}", it) for key, it in value.items())
    elif step.startswith("[") and isinstance(value, list):
        index = step[1:-1]
        if index.isdecimal() and int(index) < len(value):
            yield Place(f"{path}{step}", value[int(index)])
    elif isinstance(value, dict) and step in value:
        yield Place(f"{path}.{step}".removeprefix("."), value[step])


def _wrong(places: Sequence[Place], steps: Sequence[str], is_wrong: Callable[[Any], bool]) -> Place:
    """The first part that is wrong; one without a value if none is found."""
    found = (it for it in places if is_wrong(it.value))
    return next(found, Place(_path(steps), msgspec.UNSET))


# ---------------------------------------------------------------------------------- sentences


def _type_fault(found: re.Match[str], places: Sequence[Place], steps: Sequence[str]) -> Fault:
    names = [it for it in found["expected"].split(" | ") if it != "null"]
    got = found["got"]
    path, value = _wrong(places, steps, lambda it: got is None or _kind(it) == got)
    got = got or ("" if value is msgspec.UNSET else _kind(value))
    expected = " or ".join(_KINDS.get(it, it) for it in names)
    came = f", but got {_KINDS.get(got, got)} instead" if got else ""
    said = f"{_named('Invalid type for', path)}: expected {expected}{came}."
    return Fault(said, "invalid_type", path or None)


def _bound_fault(found: re.Match[str], places: Sequence[Place], steps: Sequence[str]) -> Fault:
    sign, bound = found["sign"], found["bound"].removesuffix(".0")
    most = int(bound) if bound.lstrip("-").isdecimal() else float(bound)
    path, value = _wrong(places, steps, lambda it: _is_beyond(it, sign, most))
    noun, side = _NOUNS[found["kind"]], sign[0]
    came = "" if value is msgspec.UNSET else f", but got {_shown(value)} instead"
    said = f"{noun} {_SAID[side]} value. Expected a value {sign} {bound}{came}."
    return Fault(f"Invalid '{path}': {said}", f"{noun}_{_SIDES[side]}_value", path)


def _is_beyond(value: Any, sign: str, bound: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value > bound if sign[0] == "<" else value < bound


def _length_fault(
    found: re.Match[str], places: Sequence[Place], steps: Sequence[str], invalid: str
) -> Fault:
    kind, side, n = found["kind"], found["sign"][0], int(found["n"])

    def is_wrong(it: Any) -> bool:
        return _kind(it) == kind and (len(it) > n if side == "<" else len(it) < n)

    path, value = _wrong(places, steps, is_wrong)
    length = 0 if value is msgspec.UNSET else len(value)
    if kind == "object":
        said = f"too many properties. Expected an object with at most {n}, but got {length}"
        code = f"object_{_SIDES[side]}_properties"
        return Fault(f"{invalid} '{path}': {said} instead.", code, path)
    noun, a_noun = _NOUNS[kind], _KINDS[kind]
    if side == ">" and not length:
        said = f"empty {noun}. Expected {a_noun} with minimum length {n}, but got an empty {noun}"
        return Fault(f"{invalid} '{path}': {said} instead.", f"empty_{noun}", path)
    size, most = ("long", "maximum") if side == "<" else ("short", "minimum")
    said = (
        f"{noun} too {size}. Expected {a_noun} with {most} length {n}, "
        f"but got {a_noun} with length {length} instead."
    )
    return Fault(f"{invalid} '{path}': {said}", f"{noun}_{_SIDES[side]}_length", path)


def _value_fault(value: str, path: str, kind: Any, steps: Sequence[str]) -> str:
    """A value that is none of those that would do."""
    could = [f"'{it}'" for it in dict.fromkeys(_values(kind, steps))]
    shown = value if len(value) <= _MAX_SHOWN else f"{value[:_MAX_SHOWN]}…'"
    said = f"Invalid value for '{path}': {shown}."
    if len(could) < 2:
        return f"{said} Supported: {could[0]}." if could else said
    *first, last = could
    return f"{said} Supported values are: {', '.join(first)} and {last}."


def _named(said: str, path: str) -> str:
    return f"{said} '{path}'" if path else f"{said} the body"


def _kind(value: Any) -> str:
    """What msgspec calls the type of a part of a body."""
    return _PYTHON_KINDS.get(type(value), "null")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


# ---------------------------------------------------------------------------------- types


def _values(kind: Any, steps: Sequence[str]) -> Iterator[object]:
    """The values that may be at a place of a type: those of literals, and tags."""
    found = [inspect.type_info(kind)]
    for step in steps[:-1]:
        found = [inner for it in found for inner in _inner(it, step)]
    last = steps[-1] if steps else ""
    for it in _alternatives(found):
        if isinstance(it, inspect.StructType) and it.tag_field == last:
            yield it.tag
    for it in _alternatives(inner for each in found for inner in _inner(each, last)):
        if isinstance(it, inspect.LiteralType):
            yield from it.values


def _alternatives(found: Any) -> Iterator[inspect.Type]:
    for it in found:
        if isinstance(it, inspect.Metadata):
            yield from _alternatives([it.type])
        elif isinstance(it, inspect.UnionType):
            yield from _alternatives(it.types)
        else:
            yield it


def _inner(kind: inspect.Type, step: str) -> Iterator[inspect.Type]:
    """What a step leads to in a type."""
    for it in _alternatives([kind]):
        if isinstance(it, inspect.StructType):
            yield from (field.type for field in it.fields if field.encode_name == step)
        elif isinstance(it, inspect.ListType) and step.startswith("["):
            yield it.item_type
        elif isinstance(it, inspect.DictType) and step == "[...]":
            yield it.value_type
