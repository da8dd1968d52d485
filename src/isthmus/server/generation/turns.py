"""A conversation without its oldest turns, if it does not fit into a context."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from isthmus.errors import ContextFull

_T = TypeVar("_T")
Messages = Sequence[Mapping[str, Any]]
_INSTRUCTIONS = ("system", "developer")


def without_oldest(messages: Messages, render: Callable[[Messages], _T]) -> _T:
    """What `render` gives for as many of the last turns as fit.

    A turn begins with what a user says; what follows it, answers, calls and results, stays or goes
    with it. Instructions and the last turn stay. ContextFull, raised by `render`, if these do not
    fit either. `render` is called about as often as the number of turns has binary digits.
    """
    try:
        return render(messages)
    except ContextFull:
        kept, turns = _turns(messages)
    fewest, most, found = 1, len(turns) - 1, None
    while fewest <= most:
        n = (fewest + most + 1) // 2
        try:
            found = render([*kept, *(it for turn in turns[-n:] for it in turn)])
        except ContextFull:
            most = n - 1
        else:
            fewest = n + 1
    if found is None:
        return render([*kept, *(turns[-1] if turns else ())])
    return found


def _turns(messages: Messages) -> tuple[list[Mapping[str, Any]], list[list[Mapping[str, Any]]]]:
    """Instructions at the beginning, and all turns after them."""
    n_kept = next(
        (n for n, it in enumerate(messages) if it.get("role") not in _INSTRUCTIONS), len(messages)
    )
    turns: list[list[Mapping[str, Any]]] = []
    for message in messages[n_kept:]:
        if message.get("role") == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return list(messages[:n_kept]), turns
