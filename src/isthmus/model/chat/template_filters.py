"""Filters and tests of templates, each paid for before it runs; `tojson` is that of Transformers.

Only those are here whose cost is known beforehand: `pprint` of a list that holds another twice,
sixty times over, is one call that nothing interrupts. A template may mention the others, and is
refused when it comes to one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jinja2
from jinja2 import pass_context
from jinja2.runtime import Context

from isthmus.model.chat.template_budget import STEP, Budget, budget_of

_MAX_DIGITS = 4000
_MAX_WIDTH = 64

_CHEAP = frozenset(
    (
        *("abs", "attr", "count", "d", "default", "filesizeformat", "first", "float", "last"),
        *("length", "safe"),
    )
)
"""Filters whose cost does not depend on their operands' sizes."""
_STEPWISE = frozenset(
    (
        *("batch", "items", "list", "map", "reject", "rejectattr", "reverse", "select"),
        *("selectattr", "slice"),
    )
)
"""Filters that go through a list once and do not look into its elements."""
_WHOLE = frozenset(
    (
        *("capitalize", "center", "dictsort", "e", "escape", "forceescape", "format", "groupby"),
        *("indent", "int", "join", "lower", "max", "min", "replace", "round", "sort", "string"),
        *("sum", "title", "tojson", "trim", "truncate", "unique", "upper", "urlencode"),
        *("wordcount",),
    )
)
"""Filters that read, and may write, all that they are given."""
REFUSED_FILTERS = frozenset(("pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr"))
"""Jinja's other filters: `random` gives another text each time, the others have no bounds."""
_CHEAP_TESTS = frozenset(
    (
        *("boolean", "callable", "defined", "divisibleby", "escaped", "even", "false", "filter"),
        *("float", "integer", "iterable", "mapping", "none", "number", "odd", "sameas"),
        *("sequence", "string", "test", "true", "undefined"),
    )
)
_COMPARISONS = frozenset(
    (
        *("!=", "<", "<=", "==", ">", ">=", "eq", "equalto", "ge", "greaterthan", "gt", "in"),
        *("le", "lessthan", "lower", "lt", "ne", "upper"),
    )
)


def guarded_filters(found: Mapping[str, Any]) -> dict[str, Any]:
    """Jinja's filters by name, those that are paid for and those that are refused."""
    known = {**found, "tojson": _to_json}
    paid = {name: _guarded(name, known[name]) for name in (*_CHEAP, *_STEPWISE, *_WHOLE)}
    return paid | {name: _refusing(name) for name in REFUSED_FILTERS}


def guarded_tests(known: Mapping[str, Any]) -> dict[str, Any]:
    """Jinja's tests by name, paid for."""
    cheap = {name: known[name] for name in _CHEAP_TESTS}
    return (
        cheap
        | {name: _guarded_test(known[name]) for name in _COMPARISONS}
        | {"divisibleby": _is_divisible}
    )


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is paid for before it runs, and whose result is paid for after it."""
    before = _BEFORE.get(name)

    @pass_context
    def call(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget = budget_of(context)
        budget.spend(STEP)
        if name in _STEPWISE:
            budget.walk(value)
        elif name in _WHOLE:
            value = budget.result(value) if isinstance(value, Iterator) else value
            budget.write(value, args, kwargs)
        if before is not None:
            value = before(budget, value, *args, **kwargs)
        result = function(*_first(function, context), value, *args, **kwargs)
        return result if name in _CHEAP else budget.result(result)

    return call


def _refusing(name: str) -> Callable[..., NoReturn]:
    def call(*_: Any, **__: Any) -> NoReturn:
        raise jinja2.TemplateError(f"the filter {name!r} is not available to chat templates")

    return call


def _guarded_test(function: Callable[..., Any]) -> Callable[..., Any]:
    @pass_context
    def call(context: Context, value: Any, *args: Any) -> Any:
        budget_of(context).read(value, args)
        return function(*_first(function, context), value, *args)

    return call


def _first(function: Any, context: Context) -> tuple[Any, ...]:
    """What a function of Jinja's wants before its operands."""
    wanted = getattr(function, "jinja_pass_arg", None)
    given = {"context": context, "eval_context": context.eval_ctx}
    return () if wanted is None else (given.get(wanted.name, context.environment),)


def _before_join(budget: Budget, value: Any, d: Any = "", *_: Any, **__: Any) -> list[Any]:
    items = list(value)
    budget.join(str(d), items)
    return items


def _before_replace(budget: Budget, value: Any, old: Any, new: Any, *_: Any, **__: Any) -> str:
    text = str(value)
    budget.replace(text, old, new)
    return text


def _before_indent(budget: Budget, value: Any, width: Any = 4, *_: Any, **__: Any) -> str:
    text = str(value)
    length = len(width) if isinstance(width, str) else _width(width)
    budget.spend((text.count("\n") + 1) * length)
    return text


def _before_format(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> str:
    text = str(value)
    budget.format(text, [args, kwargs])
    return text


def _before_int(budget: Budget, value: Any, *_: Any, **__: Any) -> Any:
    if isinstance(value, str) and len(value) > _MAX_DIGITS:
        raise ValueError("a number of thousands of digits")
    return value


def _before_round(budget: Budget, value: Any, precision: Any = 0, *_: Any, **__: Any) -> Any:
    _width(precision)
    return value


def _before_trim(budget: Budget, value: Any, chars: Any = None, *_: Any, **__: Any) -> str:
    text = str(value)
    budget.search(text, chars)
    return text


def _before_center(budget: Budget, value: Any, width: Any = 80, *_: Any, **__: Any) -> str:
    budget.spend(max(0, int(width)))
    return str(value)


def _before_batch(budget: Budget, value: Any, linecount: Any, *_: Any, **__: Any) -> Any:
    budget.spend(STEP * max(0, int(linecount)))
    return value


def _before_slice(budget: Budget, value: Any, slices: Any, *_: Any, **__: Any) -> Any:
    budget.spend(STEP * max(0, int(slices)))
    return value


def _before_sum(budget: Budget, value: Any, attribute: Any = None, start: Any = 0) -> list[Any]:
    """Adding up lists copies what is there with each."""
    items = list(value)
    if not isinstance(start, int | float):
        budget.spend(len(items) * budget.write(items, start))
    return items


def _before_tojson(
    budget: Budget,
    value: Any,
    ensure_ascii: Any = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: Any = False,
) -> Any:
    if indent is not None:
        budget.indent(value, len(indent) if isinstance(indent, str) else max(0, _width(indent)))
    if separators is not None:
        budget.multiply(list(separators), budget.write(value))
    for _round in range(budget.write(value).bit_length() if sort_keys else 0):
        budget.read(value)
    return value


def _before_sort(budget: Budget, value: Any, *_: Any, **__: Any) -> Any:
    """Sorting compares each element with as many others as the length has bits."""
    items = value if isinstance(value, dict) else list(value)
    for _round in range(len(items).bit_length()):
        budget.read(items)
    return items


_BEFORE: dict[str, Callable[..., Any]] = {
    "batch": _before_batch,
    "center": _before_center,
    "dictsort": _before_sort,
    "format": _before_format,
    "groupby": _before_sort,
    "indent": _before_indent,
    "int": _before_int,
    "join": _before_join,
    "replace": _before_replace,
    "round": _before_round,
    "slice": _before_slice,
    "sort": _before_sort,
    "sum": _before_sum,
    "tojson": _before_tojson,
    "trim": _before_trim,
}


def _width(value: Any) -> int:
    if isinstance(value, int) and abs(value) > _MAX_WIDTH:
        raise ValueError(f"{value} is too wide")
    return int(value)


def _is_divisible(value: Any, number: Any) -> bool:
    if not (isinstance(value, int | float) and isinstance(number, int | float)):
        raise TypeError("divisibleby is for numbers")
    return value % number == 0


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own, which writes HTML's characters as escapes."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
