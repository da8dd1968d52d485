"""Which form a chat template is written for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from isthmus.model.forms.calls import Calls
from isthmus.model.forms.thought import Thought


@dataclass(frozen=True)
class Signs:
    """Texts that tell a form: a template's source has all of `has`, and none of `lacks`."""

    has: tuple[str, ...]
    lacks: tuple[str, ...] = ()

    def fit(self, source: str) -> bool:
        """Whether a template's source has them."""
        return all(it in source for it in self.has) and not any(it in source for it in self.lacks)


def signs(*has: str, lacks: tuple[str, ...] = ()) -> tuple[Signs, ...]:
    """The only signs of a row."""
    return (Signs(has, lacks),)


class _Row(Protocol):
    @property
    def signs(self) -> tuple[Signs, ...]: ...


@dataclass(frozen=True)
class CallForm:
    """A row of the table of calls."""

    name: str
    models: str
    """Some that write it, for people."""
    example: str
    """A call of `f` with the text "v" as its argument `k`."""
    calls: Calls
    signs: tuple[Signs, ...]
    """Any of these tells it."""


@dataclass(frozen=True)
class ThoughtForm:
    """A row of the table of thoughts."""

    name: str
    models: str
    thought: Thought
    signs: tuple[Signs, ...]


@dataclass(frozen=True)
class WrapForm:
    """A row of the table of what is written around a text."""

    begins: str
    ends: str
    signs: tuple[Signs, ...]


_R = TypeVar("_R", bound=_Row)


def fitting(rows: Iterable[_R], source: str) -> list[_R]:
    """The rows whose signs a template's source has, in their order."""
    return [it for it in rows if any(sign.fit(source) for sign in it.signs)]
