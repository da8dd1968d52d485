"""A schema, or several together, as alternatives without alternatives in them.

What applies to a value in place (`$ref`, `allOf`, `anyOf`, `oneOf`, `not`, `if`, `dependent…`) is
worked out here. Each `Term` that is left is a list of plain keywords, all of which hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from isthmus.model.schemas.document import Document, Node, refuse
from isthmus.model.schemas.evaluation import (
    TYPES,
    Evaluation,
    Own,
    key_of,
    type_of,
    types_of,
)
from isthmus.model.schemas.keywords import KEYWORDS, Force
from isthmus.model.schemas.negation import Negation

Conjunction: TypeAlias = "tuple[Node, ...]"
"""Schemas that hold together."""
_Option: TypeAlias = "tuple[Placed, ...]"
_PLAIN = {"type", "nullable", "$ref", "$dynamicRef", "$recursiveRef", "$defs", "definitions"}
_PLAIN |= {"$id", "$anchor", "$schema", "allOf", "anyOf", "oneOf", "not", "if", "then", "else"}
"""Keywords that say no more of a term, once it is one."""
_SAYING = {it for it, row in KEYWORDS.items() if row.force is not Force.ANNOTATION} - _PLAIN
_MAX_OPPOSITES = 12
"""Alternatives of one opposite, beyond which overlapping schemas of `oneOf` are named instead."""
_MAX_CHECKED = 60
"""Schemas of one `oneOf` that are compared with each other."""


@dataclass(frozen=True)
class Placed:
    """A schema, and those within which it applies in place."""

    node: Node
    within: tuple[Node, ...]
    is_opposite: bool = False
    """Whether it comes from an opposite: then `unevaluated…` takes no notice of it."""


@dataclass(frozen=True)
class Term:
    """See the module."""

    parts: tuple[Placed, ...]
    types: frozenset[str]
    """Types that a value may have."""
    is_whole: bool
    """Whether numbers must be whole."""
    values: tuple[Any, ...] | None
    """All values that there are, if `const` or `enum` lists them."""

    @property
    def says(self) -> frozenset[object]:
        """The keywords that say more of a value than its types."""
        return frozenset(key for it in self.parts for key in it.node.fields if _says(key))


class Terms:
    """See the module."""

    def __init__(self, document: Document, warn: Callable[[Node, str], None]) -> None:
        self._document = document
        self._warn = warn
        self.evaluation = Evaluation(document)
        self._negation = Negation(document, warn)
        self._opposites: set[Node] = set()
        self._known: dict[Conjunction, tuple[Term, ...]] = {}
        self._kept_nodes: dict[tuple[Node, tuple[str, str]], list[tuple[Node, ...]]] = {}

    def of(self, together: Conjunction) -> tuple[Term, ...]:
        """The alternatives. GrammarError if one of the schemas needs itself in place."""
        if together not in self._known:
            start = [Placed(it, ()) for it in together]
            self._known[together] = tuple(self._expanded(start))
        return self._known[together]

    def _expanded(self, start: list[Placed]) -> Iterator[Term]:
        waiting: list[tuple[list[Placed], tuple[Placed, ...], list[list[_Option]]]] = [
            (start, (), [])
        ]
        while waiting:
            pending, done, choices = waiting.pop()
            plain = self._flat(pending, done, choices)
            if plain is None or (term := self._term(plain)) is None:
                continue
            if not choices:
                yield term
                continue
            options, rest = choices[0], choices[1:]
            for option in reversed(options):
                self._document.spend(plain[0].node if plain else start[0].node, 1 + len(plain))
                waiting.append((list(option), plain, list(rest)))

    def _flat(
        self, pending: list[Placed], done: tuple[Placed, ...], choices: list[list[_Option]]
    ) -> tuple[Placed, ...] | None:
        """The plain parts of what is pending and done; adds to `choices`. None if none can hold."""
        parts = list(done)
        seen = {it.node for it in parts}
        pending.reverse()
        while pending:
            placed = pending.pop()
            node = placed.node
            self._document.spend(node)
            if node.value is False:
                return None
            if node in placed.within:
                refuse(node, "it refers to itself without an end")
            if node.value is True or node in seen:
                continue
            seen.add(node)
            parts.append(placed)
            pending += [self._inside(placed, it) for it in reversed(list(self._applied(node)))]
            for options in self._choices(node):
                choices.append([tuple(self._inside(placed, x) for x in it) for it in options])
        return tuple(parts)

    def _inside(self, placed: Placed, node: Node) -> Placed:
        is_opposite = placed.is_opposite or node in self._opposites
        return Placed(node, (*placed.within, placed.node), is_opposite)

    def beside(self, term: Term, one: Placed) -> list[Node]:
        """The schemas of a term whose properties and items count for `unevaluated…` of one."""
        return [
            it.node
            for it in term.parts
            if (one.node in it.within or it is one) and not it.is_opposite
        ]

    def is_settled(self, term: Term, one: Placed, keyword: str) -> bool:
        """Whether a schema inside of one says what becomes of all that is unevaluated."""
        return any(x is not one.node and keyword in x.fields for x in self.beside(term, one))

    def _opposite_of(self, node: Node) -> list[Node]:
        found = self._negation.of(node)
        self._opposites.update(found)
        return found

    def _applied(self, node: Node) -> Iterator[Node]:
        """Schemas that hold with one."""
        fields = node.fields
        for keyword in ("$ref", "$dynamicRef", "$recursiveRef"):
            if keyword in fields:
                yield self._document.resolved(node, keyword)
        yield from (node.child("allOf", n) for n in range(len(fields.get("allOf", ()))))

    def _choices(self, node: Node) -> Iterator[list[tuple[Node, ...]]]:
        """For each of its keywords that says so: alternatives of which one holds."""
        fields = node.fields
        if "anyOf" in fields:
            yield [(node.child("anyOf", n),) for n in range(len(fields["anyOf"]))]
        if "oneOf" in fields:
            yield self._one_of(node)
        if "not" in fields:
            yield [(it,) for it in self._opposite_of(node.child("not"))]
        if "if" in fields and ("then" in fields or "else" in fields):
            unless = self._opposite_of(node.child("if"))
            then = (node.child("then"),) if "then" in fields else ()
            other = (node.child("else"),) if "else" in fields else ()
            yield [(node.child("if"), *then), *((it, *other) for it in unless)]
        for keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
            for key, wanted in fields.get(keyword, {}).items():
                more = {"required": wanted} if isinstance(wanted, list) else wanted
                absent = {"properties": {key: False}}
                first = node.made({"properties": {key: True}})
                self._opposites.add(first)  # it says where the key is written, and evaluates none
                both = {"required": [key], "allOf": [first.value, more]}
                yield self._kept(node, (keyword, key), [absent, both])

    def _kept(
        self, node: Node, key: tuple[str, str], values: list[dict[str, Any]]
    ) -> list[tuple[Node, ...]]:
        """Made schemas, the same ones each time."""
        place = (node, key)
        if place not in self._kept_nodes:
            self._kept_nodes[place] = [
                (node.made({"type": "object", **it}, key[0]),) for it in values
            ]
            rest = [it for it in TYPES if it != "object"]
            self._kept_nodes[place].append((node.made({"type": rest}, key[0]),))
        return self._kept_nodes[place]

    # -------------------------------------------------------------------------------- oneOf

    def _one_of(self, node: Node) -> list[tuple[Node, ...]]:
        """Each schema together with the opposites of those that it may overlap with."""
        children = [node.child("oneOf", n) for n in range(len(node.fields["oneOf"]))]
        if len(children) > _MAX_CHECKED:
            if not self._are_listed(children):
                self._warn(node, "oneOf has too many schemas: more than one of them may hold")
            return [(it,) for it in children]
        found: list[tuple[Node, ...]] = []
        for it in children:
            others = [x for x in children if x is not it and not self._are_apart(it, x)]
            opposites = [self._opposite(node, x) for x in others]
            found.append((it, *(x for x in opposites if x is not None)))
        return found

    def _are_listed(self, children: list[Node]) -> bool:
        """Whether all are lists of values, no two of which have one in common."""
        keys = []
        for it in children:
            if not ({"const", "enum"} & set(it.fields)):
                return False
            listed = it.fields.get("enum", [it.fields.get("const")])
            keys += [key_of(value) for value in listed]
        return len(set(keys)) == len(keys)

    def _opposite(self, node: Node, other: Node) -> Node | None:
        place = (other, ("not", ""))
        if place not in self._kept_nodes:
            self._kept_nodes[place] = [(other.made({"not": other.value}),)]
        if len(self._negation.of(other)) > _MAX_OPPOSITES:
            self._warn(node, "schemas of oneOf overlap: more than one of them may hold")
            return None
        return self._kept_nodes[place][0][0]

    def _are_apart(self, one: Node, other: Node) -> bool:
        """Whether it is plain that no value follows both."""
        self._document.spend(one)
        return all(self._apart(a, b, 0) for a in self.of((one,)) for b in self.of((other,)))

    def _apart(self, one: Term, other: Term, depth: int) -> bool:
        common = one.types & other.types
        if not common:
            return True
        for a, b in ((one, other), (other, one)):
            if a.values is not None:
                nodes = [it.node for it in b.parts]
                follows = self.evaluation.follows
                return not any(all(follows(v, x) for x in nodes) for v in a.values)
        return common == {"object"} and depth < 2 and self._objects_apart(one, other, depth)

    def _objects_apart(self, one: Term, other: Term, depth: int) -> bool:
        keys = dict.fromkeys((*required_of(one), *required_of(other)))
        for key in keys:
            first, second = self.member(one, key), self.member(other, key)
            pairs = ((a, b) for a in self.of(first) for b in self.of(second))
            if all(self._apart(a, b, depth + 1) for a, b in pairs):
                return True
        return False

    # -------------------------------------------------------------------------------- terms

    def _term(self, parts: Sequence[Placed]) -> Term | None:
        """Parts that hold together; None if they contradict each other."""
        types, is_whole = set(TYPES), False
        for it in parts:
            said = types_of(it.node)
            if said is not None:
                is_whole = is_whole or ("integer" in said and "number" not in said)
                types &= {"number" if x == "integer" else x for x in said}
        if not types:
            return None
        values = self._values(parts)
        if values is not None:
            types &= {type_of(it) for it in values}
        return Term(tuple(parts), frozenset(types), is_whole, values) if types else None

    def _values(self, parts: Sequence[Placed]) -> tuple[Any, ...] | None:
        """The values that are listed and follow all parts; None if none are listed."""
        listed = None
        for it in parts:
            fields = it.node.fields
            if "const" in fields:
                listed = [fields["const"]]
                break
            if "enum" in fields and (listed is None or len(fields["enum"]) < len(listed)):
                listed = fields["enum"]
        if listed is None:
            return None
        follows = self.evaluation.follows
        unique = {key_of(it): it for it in reversed(listed)}
        good = [v for v in reversed(unique.values()) if all(follows(v, x.node) for x in parts)]
        return tuple(good)

    def member(self, term: Term, key: str) -> Conjunction:
        """The schemas of a key of an object that follows a term."""
        found: list[Node] = []
        for it in term.parts:
            found += self.evaluation.members_of(it.node, key)
            if "unevaluatedProperties" in it.node.fields:
                beside = self.beside(term, it)
                settled = self.is_settled(term, it, "unevaluatedProperties")
                if not settled and not any(self.evaluation.members_of(x, key) for x in beside):
                    found.append(it.node.child("unevaluatedProperties"))
        return tuple(dict.fromkeys(found))


def required_of(term: Term) -> dict[str, None]:
    """Keys that an object of a term must have, in order."""
    return {key: None for it in term.parts for key in it.node.fields.get("required", ())}


def _says(key: object) -> bool:
    return isinstance(key, Own) or key in _SAYING
