"""Objects of a term as expressions: named keys in the schema's order, then all others."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

from isthmus.model.schemas.arrays import Maker
from isthmus.model.schemas.document import Node
from isthmus.model.schemas.evaluation import Own, count_of, expression_of, type_of
from isthmus.model.schemas.expression import (
    EMPTY,
    NEVER,
    Expression,
    Repeat,
    Terminal,
    Text,
    any_of,
    maybe,
    seq,
)
from isthmus.model.schemas.scalars import COLON, COMMA, Strings, quoted, strings_of
from isthmus.model.schemas.terms import Conjunction, Term, required_of

_MAX_PATTERNS = 4
"""Patterns of one object: each set of those that a key matches is looked at by itself."""
_MAX_COUNTED = 2000
"""Rules that count keys."""
_ENDLESS = 2**53
_Member: TypeAlias = "tuple[Expression, bool]"
"""A key with its value, and whether it must be there."""


class Objects:
    """The objects of one term."""

    def __init__(self, maker: Maker, term: Term) -> None:
        self._maker, self._term = maker, term
        self._nodes = [it.node for it in term.parts]
        self._required = required_of(term)
        self._least = max(count_of(it, "minProperties", 0) for it in self._nodes)
        self._most = min(count_of(it, "maxProperties", _ENDLESS) for it in self._nodes)
        names = [it.child("propertyNames") for it in self._nodes if "propertyNames" in it.fields]
        self._names: Conjunction = tuple(dict.fromkeys(names))
        self._of_names = maker.terms.of(self._names) if names else ()
        self._keys = self._named()

    def expression(self) -> Expression:
        """All objects of the term."""
        for it in self._nodes:
            if any(type_of(x) == "object" for x in it.fields.get(Own.NOT_VALUES, ())):
                self._maker.warn(it, "objects that are not wanted cannot be left out")
        members = [(key, self._member(key)) for key in self._keys]
        if any(it is None for key, it in members if key in self._required):
            return NEVER
        good = [(it, key in self._required) for key, it in members if it is not None]
        return seq(Text("{"), self._inside(good, self._others()), Text("}"))

    def members(self) -> list[Member] | None:
        """Named keys that may have a value; None if one must be there and has none."""
        found = []
        for key in self._keys:
            together = self._maker.terms.member(self._term, key)
            if self._maker.terms.of(tuple(it for it in together if it.value is not True)):
                found.append(Member(key, together, key in self._required))
            elif key in self._required:
                return None
        return found

    def _named(self) -> list[str]:
        keys: dict[str, None] = {}
        for it in self._nodes:
            keys |= dict.fromkeys(it.fields.get("properties", ()))
        keys |= self._required
        for term in self._of_names:
            keys |= dict.fromkeys(x for x in term.values or () if isinstance(x, str))
        return list(keys)

    def _member(self, key: str) -> Expression | None:
        """A key and its value; None if no value may be there."""
        follows = self._maker.terms.evaluation.follows
        if not all(follows(key, it) for it in self._names):
            return None
        together = self._maker.terms.member(self._term, key)
        if any(it.value is False for it in together):
            return None
        return seq(quoted(self._nodes[0], key), COLON, self._maker.ref(together))

    # ------------------------------------------------------------------------------- others

    def _others(self) -> Expression | None:
        """A key that is not named, and its value; None if there can be none."""
        patterns = self._patterns()
        options: list[Expression] = []
        for matched in product((True, False), repeat=len(patterns)):
            which = {it for it, is_in in zip(patterns, matched, strict=True) if is_in}
            together = self._of_others(which)
            if any(it.value is False for it in together):
                continue
            for names in self._strings():
                names.wanted += [patterns[it] for it in patterns if it in which]
                names.unwanted += [patterns[it] for it in patterns if it not in which]
                names.values += self._keys
                key = Terminal(f'"\\"" ({names.terminal()}) "\\""')
                options.append(seq(key, COLON, self._maker.ref(together)))
        return any_of(options) if options else None

    def _patterns(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for it in self._nodes:
            for pattern in it.fields.get("patternProperties", ()):
                if len(found) >= _MAX_PATTERNS and pattern not in found:
                    said = f"of patternProperties, {_MAX_PATTERNS} are enforced"
                    self._maker.warn(it, f"{said} for keys that are not named")
                    break
                found[pattern] = expression_of(it, pattern)
        return found

    def _of_others(self, matched: set[str]) -> Conjunction:
        """The schemas of a key that matches these patterns and is not named."""
        found: list[Node] = []
        for it in self._term.parts:
            found += _own(it.node, matched)
            if "unevaluatedProperties" in it.node.fields:
                beside = self._maker.terms.beside(self._term, it)
                settled = self._maker.terms.is_settled(self._term, it, "unevaluatedProperties")
                if not settled and not any(_own(x, matched) for x in beside):
                    found.append(it.node.child("unevaluatedProperties"))
        return tuple(dict.fromkeys(found))

    def _strings(self) -> list[Strings]:
        """What `propertyNames` says of keys that it does not list: one of these holds."""
        if not self._names:
            return [Strings(0, None, [], [], [])]
        told = [it for it in self._of_names if "string" in it.types and it.values is None]
        said = [strings_of(it, self._maker.warn) for it in told]
        return [it for it in said if it is not None]

    # ------------------------------------------------------------------------------- order

    def _inside(self, members: list[_Member], other: Expression | None) -> Expression:
        n_required = sum(is_required for _, is_required in members)
        endless = other is not None
        if self._most < n_required or (not endless and self._least > len(members)):
            return NEVER
        needs_most = self._most < (_ENDLESS if endless else len(members))
        if self._least <= n_required and not needs_most:
            return self._plain(members, other)
        if endless and self._least > n_required + 1:
            node = next(it for it in self._nodes if "minProperties" in it.fields)
            self._maker.warn(node, "minProperties: keys that are not named may be written twice")
        cap = self._most if needs_most else self._least
        if (len(members) + 1) * (min(cap, len(members)) + 1) > _MAX_COUNTED:
            self._maker.warn(self._nodes[0], "minProperties and maxProperties are not enforced")
            return self._plain(members, other)
        return self._counted(members, other)

    def _plain(self, members: list[_Member], other: Expression | None) -> Expression:
        """Members in order, any number of which may be left out if they are not required."""
        tail = _tail(other, 0, None, True)
        first = next((n for n, it in enumerate(members) if it[1]), None)
        if first is not None:
            before = [maybe(seq(it, COMMA)) for it, _ in members[:first]]
            return seq(*before, members[first][0], *_after(members[first + 1 :]), tail)
        begun = _tail(other, 0, None, False)
        for it, _ in reversed(members):
            begun = self._maker.rule(any_of([seq(it, tail), begun]))
            tail = self._maker.rule(seq(maybe(seq(COMMA, it)), tail))
        return begun

    def _counted(self, members: list[_Member], other: Expression | None) -> Expression:
        """Members in order, as many as there may be together with the others."""

        def end(n: int) -> Expression:
            most = None if self._most == _ENDLESS else max(0, self._most - n)
            return _tail(other, max(0, self._least - n), most, n > 0)

        after = [end(n) for n in range(len(members) + 1)]
        for at in range(len(members) - 1, -1, -1):
            it, is_required = members[at]
            before = []
            for n in range(at + 1):
                options = [seq(*([COMMA] if n else []), it, after[n + 1])] if n < self._most else []
                options += [] if is_required else [after[n]]
                before.append(self._maker.rule(any_of(options)))
            after = before
        return after[0]


def _after(members: list[_Member]) -> list[Expression]:
    said = ((seq(COMMA, it), is_required) for it, is_required in members)
    return [it if is_required else maybe(it) for it, is_required in said]


def _tail(other: Expression | None, least: int, most: int | None, follows: bool) -> Expression:
    if other is None:
        return EMPTY if least == 0 else NEVER
    if most == 0:
        return EMPTY if least == 0 else NEVER
    again = seq(COMMA, other)
    if follows:
        return Repeat(again, least, most)
    found = seq(other, Repeat(again, max(0, least - 1), None if most is None else most - 1))
    return found if least else maybe(found)


def _own(node: Node, matched: set[str]) -> list[Node]:
    """The schemas of a key that is not named, by one object's keywords."""
    patterns = [it for it in node.fields.get("patternProperties", ()) if it in matched]
    found = [node.child("patternProperties", it) for it in patterns]
    if not found and "additionalProperties" in node.fields:
        found.append(node.child("additionalProperties"))
    return found


@dataclass(frozen=True)
class Member:
    """A key of an object, for notations that are not JSON."""

    key: str
    together: Conjunction
    """The schemas of its value."""
    is_required: bool


_MEMBERS: frozenset[object] = frozenset(
    ("properties", "required", "additionalProperties", "unevaluatedProperties")
)


def members_of(maker: Maker, term: Term) -> list[Member] | None:
    """The named keys of a term's objects; None if more is said of them. What is not named is left
    out."""
    if term.values is not None or not term.says <= _MEMBERS:
        return None
    return Objects(maker, term).members()
