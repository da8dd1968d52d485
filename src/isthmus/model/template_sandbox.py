"""Jinja with an end: templates by strangers that cannot stall the process or eat its memory.

Jinja's own sandbox keeps a template from Python's insides and bounds neither time nor memory. Here
every step is paid from a `Budget`: each round of a loop, call, operator, filter, list and text.

* A template's syntax tree is changed before it is compiled (`template_tree`): loops, macros and
  blocks pay for each round, and expressions that read or make much go through a filter that pays.
* Of filters, tests and methods, only those are there that templates use and whose cost is known
  beforehand. All others are unknown: `center(999999999)` is one call that nothing interrupts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, cast

import jinja2
from jinja2 import nodes, pass_context
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from isthmus.model.template_budget import STEP, Budget
from isthmus.model.template_tree import BODY, CONCAT, LOOP, MADE, SEEN, paying

BUDGET = " budget"
"""The budget's name in a rendering's context; no template can say a name with a space."""
_JINJAS_OWN = ("_loop_vars", "_block_vars")
"""What compiled templates give to every call, for functions that want the context."""
_MOST_DIGITS = 4000
_MOST_WIDTH = 64

_CHEAP = frozenset(("count", "length", "first", "last", "default", "d", "safe", "float", "abs"))
"""Filters whose cost does not depend on their operands' sizes."""
_STEPWISE = frozenset(
    ("items", "list", "map", "reject", "rejectattr", "reverse", "select", "selectattr")
)
"""Filters that go through a list once and do not look into its elements."""
_WHOLE = frozenset(
    (
        *("capitalize", "dictsort", "e", "escape", "format", "indent", "int", "join", "lower"),
        *("max", "min", "replace", "round", "sort", "string", "title", "tojson", "trim"),
        *("unique", "upper"),
    )
)
"""Filters that read, and may write, all that they are given."""
_CHEAP_TESTS = frozenset(
    (
        *("boolean", "callable", "defined", "divisibleby", "even", "false", "float", "integer"),
        *("iterable", "mapping", "none", "number", "odd", "sameas", "sequence", "string", "true"),
        *("undefined",),
    )
)
_COMPARISONS = frozenset(
    (
        *("!=", "<", "<=", "==", ">", ">=", "eq", "equalto", "ge", "greaterthan", "gt", "in"),
        *("le", "lessthan", "lower", "lt", "ne", "upper"),
    )
)
_SEARCHES = frozenset(
    (
        *("count", "endswith", "find", "index", "lstrip", "partition", "removeprefix"),
        *("removesuffix", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split"),
        *("splitlines", "startswith", "strip"),
    )
)
_TEXT_METHODS = _SEARCHES | frozenset(
    (
        *("capitalize", "casefold", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit"),
        *("islower", "isnumeric", "isspace", "istitle", "isupper", "join", "lower", "replace"),
        *("swapcase", "title", "upper"),
    )
)
_METHODS: dict[type, frozenset[str]] = {
    str: _TEXT_METHODS,
    dict: frozenset(("get", "items", "keys", "values")),
    list: frozenset(("count", "index")),
    tuple: frozenset(("count", "index")),
    int: frozenset(),
    float: frozenset(),
}


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """See the module. A rendering's variables hold a `Budget` under the name `BUDGET`."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols"],
            finalize=_finalized,
        )
        known = self.filters | {"tojson": _to_json}
        self.filters = {
            name: _guarded(name, known[name]) for name in (*_CHEAP, *_STEPWISE, *_WHOLE)
        }
        own = {LOOP: _loop, BODY: _body, SEEN: _seen, MADE: _made, CONCAT: _concatenated}
        self.filters.update(own)
        tests: dict[str, Any] = {name: self.tests[name] for name in _CHEAP_TESTS | _COMPARISONS}
        guarded = {name: _guarded_test(tests[name]) for name in _COMPARISONS}
        self.tests = tests | guarded | {"divisibleby": _is_divisible}
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": _refuse, "namespace": _Namespace}

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may have it: of texts, lists and numbers, what is listed above."""
        for kind, methods in _METHODS.items():
            if isinstance(obj, kind):
                return attr in methods
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """`format` of texts goes the way of other methods: it is not among them."""

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Computes `left operator right`, once it is paid for."""
        budget = context.parent[BUDGET]
        if operator == "+" and type(left) is str and type(right) is str:  # nearly all of them
            budget.spend(STEP + len(left) + len(right))
            return left + right
        budget.spend(STEP)
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "*":
            budget.multiply(left, right)
        elif operator == "**":
            budget.raise_power(left, right)
        elif operator == "%" and isinstance(left, str):
            budget.format(left, right)
        elif not numbers:
            budget.write(left, right)
        return super().call_binop(context, operator, left, right)

    def call(  # the names leave keyword arguments to the callee, as Jinja's own do
        self, __context: Context, __callee: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Calls a function, macro or method, once it is paid for."""
        budget = _budget(__context)
        budget.spend(STEP)
        named = {name: value for name, value in kwargs.items() if name not in _JINJAS_OWN}
        owner = getattr(__callee, "__self__", None)
        if isinstance(owner, str):
            args = _pay_for_method(budget, owner, __callee.__name__, args, named)
        elif isinstance(owner, list | tuple):
            budget.read(owner, args)
        elif not _is_plain_macro(__callee):
            budget.read(args, named)
        result = super().call(__context, __callee, *args, **kwargs)
        own = owner is None and not isinstance(__callee, Macro)
        return budget.result(result) if own or isinstance(owner, str) else result

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        return paying(tree, self)


def _budget(context: Context) -> Budget:
    return cast("Budget", context.parent[BUDGET])


# ---------------------------------------------------------------------- what the tree calls


class _Sized:
    """A list whose elements are paid for when they are taken; `loop.length` asks for its length."""

    def __init__(self, budget: Budget, values: Any, units: int) -> None:
        self._budget, self._values, self._units = budget, values, units

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        return self._budget.steps(self._values, self._units)


@pass_context
def _loop(context: Context, values: Any, weight: int) -> Any:
    budget = _budget(context)
    if hasattr(type(values), "__len__"):
        return _Sized(budget, values, STEP + weight)
    return budget.steps(values, STEP + weight)


@pass_context
def _body(context: Context, weight: int) -> None:
    _budget(context).spend(STEP + weight)


@pass_context
def _seen(context: Context, value: Any) -> Any:
    _budget(context).read(value)
    return value


@pass_context
def _made(context: Context, value: Any) -> Any:
    return _budget(context).result(value)


@pass_context
def _concatenated(context: Context, parts: list[Any]) -> str:
    _budget(context).write(parts)
    return "".join(map(str, parts))


@pass_context
def _finalized(context: Context, value: Any) -> Any:
    """What is written out becomes text of at most this length."""
    if type(value) is str:
        context.parent[BUDGET].spend(STEP + len(value))
    else:
        _budget(context).write(value)
    return value


# ---------------------------------------------------------------------- filters, tests, functions


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is paid for before it runs, and whose result is paid for behind it."""
    before = _BEFORE.get(name)

    @pass_context
    def call(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget = _budget(context)
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


def _guarded_test(function: Callable[..., Any]) -> Callable[..., Any]:
    @pass_context
    def call(context: Context, value: Any, *args: Any) -> Any:
        _budget(context).read(value, args)
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
    if isinstance(value, str) and len(value) > _MOST_DIGITS:
        raise ValueError("a number of thousands of digits")
    return value


def _before_round(budget: Budget, value: Any, precision: Any = 0, *_: Any, **__: Any) -> Any:
    _width(precision)
    return value


def _before_trim(budget: Budget, value: Any, chars: Any = None, *_: Any, **__: Any) -> str:
    text = str(value)
    budget.search(text, chars)
    return text


def _before_sort(budget: Budget, value: Any, *_: Any, **__: Any) -> Any:
    """Sorting compares each element with as many others as the length has bits."""
    items = value if isinstance(value, dict) else list(value)
    for _round in range(len(items).bit_length()):
        budget.read(items)
    return items


_BEFORE: dict[str, Callable[..., Any]] = {
    "dictsort": _before_sort,
    "format": _before_format,
    "indent": _before_indent,
    "int": _before_int,
    "join": _before_join,
    "replace": _before_replace,
    "round": _before_round,
    "sort": _before_sort,
    "trim": _before_trim,
}


def _pay_for_method(
    budget: Budget, owner: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, ...]:
    """Pays for a method of a text; returns its arguments, what comes one by one as a list."""
    if name in _SEARCHES:
        budget.search(owner, args, kwargs)
        if name in ("split", "rsplit", "splitlines"):
            _pay_for_parts(budget, owner, args)
    elif name == "join" and args:
        args = (list(args[0]), *args[1:])
        budget.join(owner, args[0])
    elif name == "replace" and len(args) > 1:
        budget.replace(owner, args[0], args[1])
    elif kwargs:
        budget.read(kwargs)
    budget.spend(len(owner) // STEP)
    return args


def _pay_for_parts(budget: Budget, owner: str, args: tuple[Any, ...]) -> None:
    separator = args[0] if args and isinstance(args[0], str) else None
    budget.spend(STEP * (owner.count(separator) if separator else len(owner) // 2))


def _is_plain_macro(callee: Any) -> bool:
    """Whether arguments stay what they are: a macro may make lists of the rest of them."""
    return isinstance(callee, Macro) and not (callee.catch_varargs or callee.catch_kwargs)


def _width(value: Any) -> int:
    if isinstance(value, int) and abs(value) > _MOST_WIDTH:
        raise ValueError(f"{value} is too wide")
    return int(value)


class _Namespace(Namespace):
    """Jinja's, whose own text would hold that of all its values."""

    def __repr__(self) -> str:
        return "<Namespace>"


def _is_divisible(value: Any, number: Any) -> bool:
    if not (isinstance(value, int | float) and isinstance(number, int | float)):
        raise TypeError("divisibleby is for numbers")
    return value % number == 0


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=None if indent is None else _width(indent))
