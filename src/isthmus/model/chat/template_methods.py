"""Methods of texts and lists that templates may call, each paid for before it runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from string import Formatter
from typing import Any

from isthmus.model.chat.template_budget import STEP, Budget

_SEARCHES = frozenset(
    (
        *("count", "endswith", "find", "index", "lstrip", "partition", "removeprefix"),
        *("removesuffix", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split"),
        *("splitlines", "startswith", "strip"),
    )
)
_PADDED = frozenset(("center", "ljust", "rjust", "zfill"))
"""Methods whose first argument is the length of their result."""
_TEXT_METHODS = (
    _SEARCHES
    | _PADDED
    | frozenset(
        (
            *("capitalize", "casefold", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit"),
            *("isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle"),
            *("isupper", "join", "lower", "replace", "swapcase", "title", "upper"),
        )
    )
)
METHODS: dict[type, frozenset[str]] = {
    str: _TEXT_METHODS,
    dict: frozenset(("copy", "get", "items", "keys", "values")),
    list: frozenset(("copy", "count", "index")),
    tuple: frozenset(("count", "index")),
    int: frozenset(("bit_length",)),
    float: frozenset(("is_integer",)),
}
"""What templates may have of each type; `format` of texts is a function of its own."""
_FIELD = re.compile(r"\w*")
_SPECIFICATION = re.compile(r"(?!.*\d{4})[^{}]{0,16}")
"""What is after the colon of a field: no width of thousands, and none that is given elsewhere."""


def pay_for_method(
    budget: Budget, owner: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, ...]:
    """Pays for a method of a text; returns its arguments, what comes one by one as a list."""
    if name in _SEARCHES:
        budget.search(owner, args, kwargs)
        if name in ("split", "rsplit", "splitlines"):
            _pay_for_parts(budget, owner, args)
    elif name in _PADDED and args and isinstance(args[0], int):
        budget.spend(max(0, args[0]))
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


def formatting(text: str) -> Callable[..., str]:
    """The method `format` of a text, without fields of fields, such as `{0.real}`."""

    def call(budget: Budget, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        fields = [it for it in Formatter().parse(text) if it[1] is not None]
        for _, name, specification, _ in fields:
            if not (_FIELD.fullmatch(name or "") and _SPECIFICATION.fullmatch(specification or "")):
                raise ValueError(f"no field of format may be {name!r:.40} {specification!r:.40}")
        budget.spend(len(text) + (len(fields) + 1) * budget.write(args, kwargs))
        return text.format(*args, **kwargs)

    return call
