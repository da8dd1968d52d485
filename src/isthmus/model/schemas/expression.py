"""Expressions of a grammar, before it is written: what can never end is taken out of them first."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from isthmus.model.schemas.rules import Rules


@dataclass(frozen=True)
class Text:
    """A literal."""

    text: str


@dataclass(frozen=True)
class Terminal:
    """What the lexer reads as one: literals and regular expressions, with `|`, `&` and `~`."""

    body: str


@dataclass(frozen=True)
class Rule:
    """The body of a rule that llguidance has a form of its own for, such as `%json {…}`."""

    body: str


@dataclass(frozen=True)
class Seq:
    """One after another."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True)
class AnyOf:
    """One of several; without any, it can never be."""

    options: tuple[Expression, ...]


@dataclass(frozen=True)
class Repeat:
    """The same again."""

    part: Expression
    least: int = 0
    most: int | None = None


@dataclass(frozen=True)
class Ref:
    """A rule, by its number."""

    number: int


Expression: TypeAlias = "Text | Terminal | Rule | Seq | AnyOf | Repeat | Ref"

NEVER = AnyOf(())
EMPTY = Seq(())


def seq(*parts: Expression) -> Expression:
    """One after another."""
    return parts[0] if len(parts) == 1 else Seq(parts)


def any_of(options: Sequence[Expression]) -> Expression:
    """One of several."""
    return options[0] if len(options) == 1 else AnyOf(tuple(options))


def maybe(part: Expression) -> Expression:
    """A part, or nothing."""
    return Repeat(part, 0, 1)


def ending(rules: Mapping[int, Expression]) -> set[int]:
    """Rules that have a text: not those that need themselves, or what can never be."""
    found: set[int] = set()
    users: dict[int, list[int]] = {}
    for number, body in rules.items():
        for it in _refs(body):
            users.setdefault(it, []).append(number)
    waiting = list(rules)
    while waiting:
        number = waiting.pop()
        if number not in found and _ends(rules[number], found):
            found.add(number)
            waiting += users.get(number, ())
    return found


def _refs(it: Expression) -> Iterator[int]:
    if isinstance(it, Ref):
        yield it.number
    elif isinstance(it, Seq):
        for part in it.parts:
            yield from _refs(part)
    elif isinstance(it, AnyOf):
        for part in it.options:
            yield from _refs(part)
    elif isinstance(it, Repeat):
        yield from _refs(it.part)


def _ends(it: Expression, good: set[int]) -> bool:
    if isinstance(it, Ref):
        return it.number in good
    if isinstance(it, Seq):
        return all(_ends(part, good) for part in it.parts)
    if isinstance(it, AnyOf):
        return any(_ends(part, good) for part in it.options)
    if isinstance(it, Repeat):
        return it.least == 0 or _ends(it.part, good)
    return True


class Written:
    """Writes rules into a grammar, without what can never end."""

    def __init__(self, rules: Rules, bodies: Mapping[int, Expression]) -> None:
        self._rules, self._bodies = rules, bodies
        self._good: set[int] = set()
        self._names: dict[int, str] = {}
        self._waiting: list[int] = []

    def write(self, number: int) -> str | None:
        """The name of a rule, after it and all that it refers to are written; None if it has no
        text."""
        self._good = ending(self._bodies)
        if number not in self._good:
            return None
        name = self._name(number)
        while self._waiting:
            it = self._waiting.pop()
            self._rules.define(self._names[it], self._said(self._bodies[it]) or '""')
        return name

    def _name(self, number: int) -> str:
        if number not in self._names:
            self._names[number] = self._rules.name()
            self._waiting.append(number)
        return self._names[number]

    def _said(self, it: Expression) -> str:
        """An expression that ends; empty if only nothing is left of it."""
        if isinstance(it, (Text, Terminal, Rule, Ref)):
            return self._leaf(it)
        if isinstance(it, Seq):
            return " ".join(filter(None, map(self._said, it.parts)))
        if isinstance(it, AnyOf):
            said = dict.fromkeys(self._said(x) or '""' for x in it.options if _ends(x, self._good))
            return f"({' | '.join(said)})" if len(said) > 1 else next(iter(said))
        return self._repeated(it)

    def _leaf(self, it: Text | Terminal | Rule | Ref) -> str:
        if isinstance(it, Text):
            return json.dumps(it.text, ensure_ascii=False)
        if isinstance(it, Terminal):
            return self._rules.terminal(it.body)
        return self._rules.same(it.body) if isinstance(it, Rule) else self._name(it.number)

    def _repeated(self, it: Repeat) -> str:
        if it.most == 0 or not _ends(it.part, self._good):
            return ""
        inner = self._said(it.part)
        if not inner or (it.least, it.most) == (1, 1):
            return inner
        count = {(0, 1): "?", (0, None): "*", (1, None): "+"}.get((it.least, it.most))
        most = "" if it.most is None else it.most
        return f"({inner}){count or f'{{{it.least},{most}}}'}"
