"""Arrays of a term as expressions."""

from __future__ import annotations

from typing import Protocol

from isthmus.model.schemas.document import Node
from isthmus.model.schemas.evaluation import Own, count_of, item_of, type_of
from isthmus.model.schemas.expression import (
    EMPTY,
    NEVER,
    Expression,
    Repeat,
    Text,
    any_of,
    maybe,
    seq,
)
from isthmus.model.schemas.scalars import COMMA, Warn, literal
from isthmus.model.schemas.terms import Conjunction, Term, Terms

_MAX_UNIQUE = 8
"""Values that unique items may have: each set of those that are there is a rule."""
_MAX_PLACES = 32
"""Items among which one is looked for that `contains` wants."""
_ENDLESS = 2**53
EQUAL_ITEMS: frozenset[object] = frozenset(("items", "minItems", "maxItems"))
"""Keywords of arrays whose items are all alike, if `items` is no list."""


class Maker(Protocol):
    """What makes rules."""

    terms: Terms

    def warn(self, node: Node, said: str) -> None: ...
    def ref(self, together: Conjunction) -> Expression: ...
    def rule(self, body: Expression) -> Expression: ...


class Arrays:
    """The arrays of one term."""

    def __init__(self, maker: Maker, term: Term) -> None:
        self._maker, self._term = maker, term
        nodes = [it.node for it in term.parts]
        self._least = max(count_of(it, "minItems", 0) for it in nodes)
        most = min(count_of(it, "maxItems", _ENDLESS) for it in nodes)
        self._most = None if most == _ENDLESS else most
        self._n_prefix = max(map(_n_prefix, nodes))
        self._unique = next((it for it in nodes if it.fields.get("uniqueItems") is True), None)
        self._warn: Warn = maker.warn

    def expression(self) -> Expression:
        """All arrays of the term."""
        if self._most is not None and self._least > self._most:
            return NEVER
        for it in self._term.parts:
            if any(type_of(x) == "array" for x in it.node.fields.get(Own.NOT_VALUES, ())):
                self._warn(it.node, "arrays that are not wanted cannot be left out")
        return seq(Text("["), self._inside(), Text("]"))

    def equal(self) -> tuple[Conjunction, int, int | None] | None:
        """The schemas of each item, and how many there may be; None if there can be none."""
        if self._n_prefix or (self._most is not None and self._least > self._most):
            return None
        return self._item(0), self._least, self._most

    def _inside(self) -> Expression:
        if self._most == 0:
            return EMPTY
        contained = self._contained()
        if self._unique is not None and self._most != 1:
            if contained is None and (unique := self._unique_items()) is not None:
                return unique
            self._warn(self._unique, "uniqueItems is not enforced")
        if contained is not None:
            return self._with(contained)
        return self._items()

    def _item(self, index: int) -> Conjunction:
        found: list[Node] = []
        for it in self._term.parts:
            schema = item_of(it.node, index)
            found += [schema] if schema is not None else []
            if "unevaluatedItems" in it.node.fields:
                beside = self._maker.terms.beside(self._term, it)
                if any("contains" in x.fields for x in beside):
                    self._warn(it.node, "unevaluatedItems is not enforced beside contains")
                elif not self._maker.terms.is_settled(self._term, it, "unevaluatedItems") and all(
                    item_of(x, index) is None for x in beside
                ):
                    found.append(it.node.child("unevaluatedItems"))
        return tuple(dict.fromkeys(found))

    def _items(self) -> Expression:
        """Items by their places, and then equal ones."""
        n = self._n_prefix if self._most is None else min(self._n_prefix, self._most)
        most = None if self._most is None else self._most - n
        found: Expression = EMPTY
        if most != 0:
            found = _listed(self._rest, max(0, self._least - n), most, n > 0)
        for index in range(n - 1, -1, -1):
            comma = [COMMA] if index else []
            found = seq(*comma, self._maker.ref(self._item(index)), found)
            found = self._maker.rule(found if index < self._least else maybe(found))
        return found

    @property
    def _rest(self) -> Expression:
        return self._maker.ref(self._item(self._n_prefix))

    # ----------------------------------------------------------------------------- contains

    def _contained(self) -> Node | None:
        """What `contains` wants, if that can be enforced."""
        found: list[Node] = []
        for it in self._term.parts:
            fields = it.node.fields
            if "contains" not in fields:
                continue
            if count_of(it.node, "minContains", 1) > 1:
                self._warn(it.node, "of minContains, 1 is enforced")
            if "maxContains" in fields:
                self._warn(it.node, "maxContains is not enforced")
            if count_of(it.node, "minContains", 1) > 0:
                found.append(it.node.child("contains"))
        far = self._least > _MAX_PLACES or (self._most or 0) > _MAX_PLACES
        for wanted in found[1:] if self._n_prefix == 0 and not far else found:
            self._warn(wanted, "contains is not enforced with what is beside it")
        return found[0] if found and self._n_prefix == 0 and not far else None

    def _with(self, wanted: Node) -> Expression:
        """Items, one of which is what `contains` wants."""
        one = self._maker.ref((*self._item(0), wanted))
        before, after = seq(self._rest, COMMA), seq(COMMA, self._rest)
        least, most, options = self._least, self._most, []
        for index in range(least if most is None else most):
            rest = None if most is None else most - 1 - index
            tail = Repeat(after, max(0, least - 1 - index), rest)
            options.append(seq(Repeat(before, index, index), one, tail))
        if most is None:
            options.append(seq(Repeat(before, least), one, Repeat(after)))
        return any_of(options)

    # ----------------------------------------------------------------------------- uniqueItems

    def _unique_items(self) -> Expression | None:
        """Items that are all different, from a few values; None if there are too many."""
        together = self._item(0)
        terms = self._maker.terms.of(together) if self._n_prefix == 0 else ()
        if not terms or any(it.values is None for it in terms):
            return None
        values = [value for it in terms for value in it.values or ()]
        if len(values) > _MAX_UNIQUE or self._unique is None:
            return None
        node = self._unique
        said = [literal(node, it) for it in values]
        most = len(values) if self._most is None else self._most

        made: dict[frozenset[int], Expression] = {}

        def after(used: frozenset[int]) -> Expression:
            if used not in made:
                options = [
                    seq(*([COMMA] if used else []), said[n], after(used | {n}))
                    for n in range(len(said))
                    if n not in used and len(used) < most
                ]
                options += [EMPTY] if len(used) >= self._least else []
                made[used] = self._maker.rule(any_of(options))
            return made[used]

        return after(frozenset())


def _n_prefix(node: Node) -> int:
    items = node.fields.get("items")
    return len(items if isinstance(items, list) else node.fields.get("prefixItems", ()))


def _listed(item: Expression, least: int, most: int | None, follows: bool) -> Expression:
    """Equal items with commas; `follows` other items or none."""
    again = seq(COMMA, item)
    if follows:
        return Repeat(again, least, most)
    if most == 0:
        return EMPTY
    rest = Repeat(again, max(0, least - 1), None if most is None else most - 1)
    found = seq(item, rest)
    return found if least else maybe(found)
