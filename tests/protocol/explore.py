"""A search of all states that a protocol can reach, nearest first."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

_S = TypeVar("_S", bound=Hashable)


@dataclass(frozen=True)
class Found(Generic[_S]):
    """What a search has come to."""

    n_states: int
    problem: str | None
    """What is wrong in the first bad state; None if no state is bad."""
    trace: tuple[str, ...] = ()
    """The steps that lead there, of which there is no shorter list."""


def explore(
    first: _S,
    steps: Callable[[_S], Iterable[tuple[str, _S]]],
    problem_of: Callable[[_S], str | None],
) -> Found[_S]:
    """Looks at every state that can be reached from the first one, until one is bad."""
    came: dict[_S, tuple[_S, str] | None] = {first: None}
    waiting = deque([first])
    while waiting:
        state = waiting.popleft()
        if (problem := problem_of(state)) is not None:
            return Found(len(came), problem, _trace(came, state))
        for name, after in steps(state):
            if after not in came:
                came[after] = (state, name)
                waiting.append(after)
    return Found(len(came), None)


def _trace(came: dict[_S, tuple[_S, str] | None], state: _S) -> tuple[str, ...]:
    names = []
    while (before := came[state]) is not None:
        state, name = before
        names.append(name)
    return tuple(reversed(names))
