"""What rendering a template may use: one budget for its steps and for the text that it makes.

A call into C, such as one that compares or joins, cannot be interrupted. So what it will cost is
told from the sizes of its operands and paid before it begins.
"""

from __future__ import annotations

import re
from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    Sized,
    ValuesView,
)
from typing import Any, cast

from jinja2.runtime import Context

from isthmus.errors import TemplateError

BUDGET = " budget"
"""The budget's name in a rendering's context; no template can say a name with a space."""
STEP = 16
"""Units that an operation or an element of a list costs; a character that is made costs one."""
UNITS = 8 << 20
"""Units for every rendering: half a million steps, which take about a second."""
_FOR_EACH = 64
"""Units for each character of the conversation; templates that people use need about five."""
_CHARACTERS_READ = 16
"""Characters that one unit reads."""
_UNITS_BETWEEN_CHECKS = 1 << 18
_MAX_BITS = 4096
"""Bits of a number: more than any template needs, and no work to compute with."""
_WIDE = re.compile(r"[#0\- +\d.]*(?:\*|\d{4})")
"""Flags, width and precision of a conversion that are given elsewhere, or are in the thousands."""
_CONTAINERS = (list, tuple, dict, set, frozenset, KeysView, ItemsView, ValuesView)


def budget_of(context: Context) -> Budget:
    """The budget of a rendering."""
    return cast("Budget", context.parent[BUDGET])


class Budget:
    """What is left for one rendering, and who may end it earlier."""

    def __init__(self, conversation: object, check: Callable[[], None], units: int = UNITS) -> None:
        self._check = check
        self._left = self._to_check = 1 << 62
        most = sum(self._sizes(conversation))
        self._left = units + _FOR_EACH * most
        self._to_check = _UNITS_BETWEEN_CHECKS

    def spend(self, units: int) -> None:
        """Pays for what is done next. TemplateError if not so much is left."""
        self._left -= units
        if self._left < 0:
            raise TemplateError(
                "the chat template takes too many steps, or makes too much text, for a "
                "conversation of this length"
            )
        self._to_check -= units
        if self._to_check < 0:
            self._to_check = _UNITS_BETWEEN_CHECKS
            self._check()

    def read(self, *values: object) -> None:
        """Pays for looking at all that values hold, at any depth."""
        for value in values:
            elements, characters = self._sizes(value)
            self.spend(elements + characters // _CHARACTERS_READ)

    def write(self, *values: object) -> int:
        """Pays for the text of values; returns about how many characters it has."""
        total = sum(sum(self._sizes(value)) for value in values)
        self.spend(total)
        return total

    def walk(self, value: object) -> None:
        """Pays for going through a list or a text once."""
        if isinstance(value, Sized):
            self.spend(STEP * len(value))

    def steps(self, values: Iterable[Any], units: int = STEP) -> Iterator[Any]:
        """Values, each paid for when it is taken."""
        for value in values:
            self.spend(units)
            yield value

    def result(self, value: Any) -> Any:
        """Pays for what a function made: a text, a list at any depth, or what comes one by one."""
        if isinstance(value, str):
            self.spend(len(value))
        elif isinstance(value, _CONTAINERS):
            self.read(value)
        elif isinstance(value, Iterator):
            return self.steps(value)
        return value

    # ------------------------------------------------------------------ what can grow

    def multiply(self, left: Any, right: Any) -> None:
        """Pays for a product, of numbers or of a text or list and a number."""
        if isinstance(left, int) and isinstance(right, int):
            self.require_number(left.bit_length() + right.bit_length())
        for many, times in ((left, right), (right, left)):
            if isinstance(times, int) and not isinstance(many, int | float):
                self.spend(max(0, times) * (STEP + sum(self._sizes(many))))

    def raise_power(self, base: Any, exponent: Any) -> None:
        """Pays for a power."""
        if isinstance(base, int) and isinstance(exponent, int):
            self.require_number(base.bit_length() * max(0, exponent))

    def require_number(self, n_bits: int) -> None:
        """TemplateError for a number of more than 4,096 bits."""
        if n_bits > _MAX_BITS:
            raise TemplateError("the chat template computes with numbers that are too large")

    def format(self, form: str, values: Any) -> None:
        """Pays for `form % values`. Raises TemplateError for a width of thousands."""
        self.spend(len(form) + form.count("%") * (STEP + sum(self._sizes(values))))
        if any(_WIDE.match(form, at) for at in _conversions(form)):
            raise TemplateError("the chat template formats with widths of thousands")

    def replace(self, text: str, old: Any, new: Any) -> None:
        """Pays for `text.replace(old, new)`."""
        if isinstance(old, str) and isinstance(new, str):
            self.spend(len(text) + text.count(old) * len(new))

    def join(self, separator: str, items: list[Any]) -> None:
        """Pays for `separator.join(items)`."""
        self.write(items)
        self.spend(len(items) * len(separator))

    def indent(self, value: object, width: int) -> None:
        """Pays for the spaces of a value's JSON, of which each line has `width` for each level."""
        elements, _ = self._sizes(value)
        self.spend(elements // STEP * width * self._depth(value))

    def search(self, text: str, *wanted: object) -> None:
        """Pays for looking for texts in a text, which may compare each with each."""
        length = sum(sum(self._sizes(it)) for it in wanted)
        self.spend(STEP + (len(text) // _CHARACTERS_READ + 1) * (length + 1))

    def _depth(self, value: object) -> int:
        """How many lists are around the innermost one; its walk is paid for by `_sizes`."""
        deepest, todo = 0, [iter((value,))]
        while todo:
            for item in todo[-1]:
                if isinstance(item, _CONTAINERS):
                    todo.append(iter(_items(item)))
                    deepest = max(deepest, len(todo))
                    break
            else:
                todo.pop()
        return deepest

    def _sizes(self, value: object) -> tuple[int, int]:
        """Units for all elements of a value, and characters of all texts, at any depth.

        Lists may hold the same list many times, and so on; it counts each time. So the walk has an
        end of its own.
        """
        if isinstance(value, str):
            return STEP, len(value)
        if not isinstance(value, _CONTAINERS):
            return (STEP * len(value) if isinstance(value, range) else STEP), 0
        elements, characters, todo = STEP, 0, [iter(_items(value))]
        while todo:
            for item in todo[-1]:
                elements += STEP
                if isinstance(item, str):
                    characters += len(item)
                elif isinstance(item, _CONTAINERS):
                    todo.append(iter(_items(item)))
                    break
                if elements > self._left:
                    self.spend(elements)
            else:
                todo.pop()
        return elements, characters


def _conversions(form: str) -> Iterator[int]:
    """Where in a form of `%` each conversion begins, after the key in parentheses."""
    at = form.find("%")
    while at >= 0:
        at += 1
        depth = 0
        while form[at : at + 1] == "(" or (depth and at < len(form)):
            depth += {"(": 1, ")": -1}.get(form[at], 0)
            at += 1
            if not depth:
                break
        yield at
        at = form.find("%", max(at, form.startswith("%", at) + at))


def _items(value: Any) -> Iterable[object]:
    if isinstance(value, Mapping):
        return (part for pair in value.items() for part in pair)
    return value  # type: ignore[no-any-return]
