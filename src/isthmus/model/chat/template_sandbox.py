"""Jinja with an end: templates by strangers that cannot stall the process or eat its memory.

Jinja's own sandbox keeps a template from Python's insides and bounds neither time nor memory. Here
every step is paid from a `Budget`: each round of a loop, call, operator, filter, list and text.

* A template's syntax tree is changed before it is compiled (`template_tree`): loops, macros and
  blocks pay for each round, and expressions that read or make much go through a filter that pays.
* Of filters, tests and methods, only those are there whose cost is known beforehand
  (`template_filters`, `template_methods`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes, pass_context
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from isthmus.model.chat.template_budget import BUDGET, STEP, Budget, budget_of
from isthmus.model.chat.template_clock import strftime
from isthmus.model.chat.template_filters import guarded_filters, guarded_tests
from isthmus.model.chat.template_methods import METHODS, formatting, pay_for_method
from isthmus.model.chat.template_tree import BODY, CONCAT, LOOP, MADE, SEEN, paying

CLOCK = " clock"
"""The name of the time in a rendering's context, as `BUDGET`'s."""
_CALL = 4 * STEP
"""Units that calling a macro costs, beside what it does: some microseconds."""
_JINJAS_OWN = ("_loop_vars", "_block_vars")
"""What compiled templates give to every call, for functions that want the context."""


class Generation(Extension):
    """`{% generation %}` … `{% endgeneration %}` around what a model has written: the text inside,
    in a scope of its own."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        """The block as the call of a macro that has its body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller: Callable[[], str]) -> str:
        return caller()


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """See the module. A rendering's variables hold a `Budget` under the name `BUDGET`, and a
    datetime under `CLOCK`."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", Generation],
            finalize=_finalized,
        )
        own = {LOOP: _loop, BODY: _body, SEEN: _seen, MADE: _made, CONCAT: _concatenated}
        self.filters = guarded_filters(self.filters) | own
        self.tests = guarded_tests(self.tests)
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _refuse,
            "namespace": _Namespace,
            "dict": _Dict(),
            "strftime_now": _strftime_now,
        }

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may have it: of texts, lists and numbers, what is listed above."""
        for kind, methods in METHODS.items():
            if isinstance(obj, kind):
                return attr in methods or attr in getattr(obj, "_fields", ())
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """The method `format` of a text, paid for; None for other values."""
        owner = getattr(value, "__self__", None)
        if not isinstance(owner, str) or getattr(value, "__name__", None) != "format":
            return None
        write = formatting(owner)

        @pass_context
        def call(context: Context, *args: Any, **kwargs: Any) -> str:
            return write(budget_of(context), args, kwargs)

        return call

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
        budget = budget_of(__context)
        budget.spend(STEP)
        named = {name: value for name, value in kwargs.items() if name not in _JINJAS_OWN}
        owner = getattr(__callee, "__self__", None)
        if isinstance(owner, str):
            args = pay_for_method(budget, owner, __callee.__name__, args, named)
        elif isinstance(owner, list | tuple) or getattr(__callee, "__name__", "") == "copy":
            budget.read(owner, args)
        elif not _is_plain_macro(__callee):
            budget.read(args, named)
        result = super().call(__context, __callee, *args, **kwargs)
        is_made = isinstance(owner, _MAKERS) and not isinstance(__callee, Macro)
        return budget.result(result) if is_made else result

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        return paying(tree, self)


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
    budget = budget_of(context)
    if hasattr(type(values), "__len__"):
        return _Sized(budget, values, STEP + weight)
    return budget.steps(values, STEP + weight)


@pass_context
def _body(context: Context, weight: int) -> None:
    budget_of(context).spend(_CALL + weight)


@pass_context
def _seen(context: Context, value: Any) -> Any:
    budget_of(context).read(value)
    return value


@pass_context
def _made(context: Context, value: Any) -> Any:
    return budget_of(context).result(value)


@pass_context
def _concatenated(context: Context, parts: list[Any]) -> str:
    budget_of(context).write(parts)
    return "".join(map(str, parts))


@pass_context
def _finalized(context: Context, value: Any) -> Any:
    """What is written out becomes text of at most this length."""
    if type(value) is str:
        context.parent[BUDGET].spend(STEP + len(value))
    else:
        budget_of(context).write(value)
    return value


# ---------------------------------------------------------------------- functions


class _Namespace(Namespace):
    """Jinja's, whose own text would hold that of all its values."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _Dict:
    """`dict`, without what the type itself would give to a template."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


_MAKERS = (type(None), str, _Dict, Extension)
"""Owners of methods that make something; a function has none."""


def _is_plain_macro(callee: Any) -> bool:
    """Whether arguments stay what they are: a macro may make lists of the rest of them."""
    return isinstance(callee, Macro) and not (callee.catch_varargs or callee.catch_kwargs)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


@pass_context
def _strftime_now(context: Context, format: str) -> str:  # noqa: A002 - its name in Transformers
    now: datetime = context.parent[CLOCK]
    return strftime(now, format)
