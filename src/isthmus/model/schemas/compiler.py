"""From a JSON schema to rules of a grammar, and sentences about what they do not enforce.

::

    Document ─► Terms ─► scalars, arrays, objects ─► expressions ─► Rules
    parts and   without alternatives                 what can never
    references  in place                             end is left out
"""

from __future__ import annotations

from typing import Any

from isthmus.errors import GrammarError
from isthmus.model.schemas.arrays import EQUAL_ITEMS, Arrays
from isthmus.model.schemas.document import Document, Node, refuse
from isthmus.model.schemas.evaluation import TYPES, Own
from isthmus.model.schemas.expression import (
    NEVER,
    Expression,
    Ref,
    Text,
    Written,
    any_of,
)
from isthmus.model.schemas.objects import Objects
from isthmus.model.schemas.rules import Rules
from isthmus.model.schemas.scalars import json_rule, listed, number_of_term, string_of
from isthmus.model.schemas.terms import Conjunction, Term, Terms

_MAX_WARNINGS = 32


class Compiler:
    """See the module. Writes into `rules`; each schema once, however often it is named."""

    def __init__(self, rules: Rules, root: Any, name: str = "") -> None:
        """`name` comes before the JSON pointers of complaints. GrammarError."""
        self._rules = rules
        self._warnings: dict[str, None] = {}
        self._bodies: dict[int, Expression] = {}
        self._writer = Written(rules, self._bodies)
        self._numbers: dict[Conjunction, int] = {}
        self._n_numbers = 0
        self._waiting: list[tuple[int, Conjunction]] = []
        try:
            self._document = Document(root, rules, name)
        except RecursionError:
            raise GrammarError(f"{name}#: schemas are nested too deeply") from None
        self.terms = Terms(self._document, self.warn)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about what is not enforced, each with a JSON pointer."""
        return tuple(self._warnings)

    def warn(self, node: Node, said: str) -> None:
        """Names what is not enforced."""
        if len(self._warnings) < _MAX_WARNINGS:
            self._warnings[f"{node.at}: {said}"] = None

    @property
    def start(self) -> Conjunction:
        """The whole schema."""
        return (self._document.root,)

    def add(self, together: Conjunction | None = None) -> str:
        """The rule of schemas that hold together, or of the whole one. GrammarError, which tells
        where."""
        together = self.start if together is None else together
        node = (*together, self._document.root)[0]
        try:
            start = self.ref(together)
            while self._waiting:
                number, each = self._waiting.pop()
                self._bodies[number] = self._body(each)
            written = self._written(start)
        except RecursionError:
            refuse(node, "schemas are nested too deeply")
        if written is None:
            refuse(node, "no value follows the schema, or none that ends")
        return written

    @staticmethod
    def plain(together: Conjunction) -> Conjunction:
        """Schemas without those that say nothing."""
        return tuple(dict.fromkeys(it for it in together if it.value is not True))

    def equal_items(self, term: Term) -> tuple[Conjunction, int, int | None] | None:
        """The schemas of each item of arrays, and how many there may be; None if items are not
        alike, or more is said of them."""
        return Arrays(self, term).equal() if term.says <= EQUAL_ITEMS else None

    def _written(self, start: Expression) -> str | None:
        if not isinstance(start, Ref):
            return self._rules.same(getattr(start, "body", '""'))
        return self._writer.write(start.number)

    def ref(self, together: Conjunction) -> Expression:
        """The rule of schemas that hold together."""
        together = self.plain(together)
        if not together:
            return json_rule({})
        if together not in self._numbers:
            self._n_numbers += 1
            self._numbers[together] = self._n_numbers
            self._waiting.append((self._n_numbers, together))
        return Ref(self._numbers[together])

    def rule(self, body: Expression) -> Expression:
        """A rule of its own, for an expression that is used in several places or is long."""
        self._n_numbers += 1
        self._bodies[self._n_numbers] = body
        return Ref(self._n_numbers)

    def _body(self, together: Conjunction) -> Expression:
        options: list[Expression] = []
        for term in self.terms.of(together):
            self._document.spend(together[0], 5)
            options += self._options(term)
        return any_of(options) if options else NEVER

    def _options(self, term: Term) -> list[Expression]:
        if not term.parts:
            return [json_rule({})]
        node = term.parts[0].node
        if term.values is not None:
            for it in term.parts:
                if {"unevaluatedProperties", "unevaluatedItems"} & set(it.node.fields):
                    self.warn(it.node, "unevaluated… is not enforced for listed values")
            return listed(node, term.values)
        said = term.says
        if not said and term.types == set(TYPES) and not term.is_whole:
            return [json_rule({})]
        return [self._of_type(kind, term, bool(said)) for kind in TYPES if kind in term.types]

    def _of_type(self, kind: str, term: Term, says: bool) -> Expression:
        if kind == "null":
            return NEVER if self._is_unwanted(term, None) else Text("null")
        if kind == "boolean":
            wanted = [it for it in (True, False) if not self._is_unwanted(term, it)]
            return any_of([Text(str(it).lower()) for it in wanted])
        if kind == "number":
            return number_of_term(term, self.warn)
        if kind == "string":
            return string_of(term, self.warn)
        if not says:
            return json_rule({"type": kind})
        return (Arrays if kind == "array" else Objects)(self, term).expression()

    @staticmethod
    def _is_unwanted(term: Term, value: bool | None) -> bool:
        unwanted = (x for it in term.parts for x in it.node.fields.get(Own.NOT_VALUES, ()))
        return any(it is value for it in unwanted)
