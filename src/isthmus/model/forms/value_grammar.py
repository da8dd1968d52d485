"""Grammars of values that follow a JSON schema, in notations other than JSON."""

from __future__ import annotations

from collections.abc import Sequence

from isthmus.errors import GrammarError
from isthmus.model.forms.lark import Function, Lark
from isthmus.model.forms.values import BARE_WORD, PYTHON, Notation, in_python
from isthmus.model.schemas import Conjunction, Member, Strings, Term, members_of, strings_of
from isthmus.model.schemas.scalars import regex

_END = "(?s:.*)"


class Values:
    """Values of one function's arguments. What has no simple type is written as JSON, which all
    readers take."""

    def __init__(self, notation: Notation, lark: Lark, function: Function) -> None:
        self._notation, self._lark, self._function = notation, lark, function
        self._compiler = lark.compiler(function)
        self._known: dict[Conjunction, str] = {}

    def whole(self) -> str:
        """All arguments."""
        return self.of(self._compiler.start)

    def shapes(self) -> list[list[Member] | None]:
        """The alternatives of the arguments, each as members with their values; None in the place
        of one that is no plain list of members. GrammarError if there is none."""
        terms = [it for it in self._terms(self._compiler.start) if "object" in it.types]
        if not terms:
            name = self._function.name[:60]
            raise GrammarError(f"tool {name}: #: no arguments follow the schema")
        return [members_of(self._compiler, it) for it in terms]

    def of(self, together: Conjunction) -> str:
        """The expression of a value."""
        if together not in self._known:
            said = self._python(together) if self._notation is PYTHON else None
            said = self._bare(together) if self._notation.bare else said
            self._known[together] = said or self._lark.json(self._function, together)
        return self._known[together]

    def _terms(self, together: Conjunction) -> Sequence[Term]:
        return self._compiler.terms.of(self._compiler.plain(together))

    def _python(self, together: Conjunction) -> str | None:
        terms = self._terms(together)
        if terms and all(it.values is not None for it in terms):
            values = [value for it in terms for value in it.values or ()]
            return self._lark.any_of([self._lark.spelled(in_python(it)) for it in values])
        if len(terms) == 1 and terms[0].types == {"boolean"} and not terms[0].says:
            return self._lark.any_of([self._lark.text("True"), self._lark.text("False")])
        return None

    def _bare(self, together: Conjunction) -> str | None:
        terms = self._terms(together)
        if len(terms) != 1:
            return None
        (term,) = terms
        if term.types == {"string"}:
            return self._bare_string(term)
        if term.types == {"object"} and term.values is None:
            return self._bare_object(together, term)
        if term.types == {"array"} and term.values is None:
            return self._bare_array(together, term)
        return None

    def _bare_string(self, term: Term) -> str | None:
        quote = next(iter(self._notation.quotes))
        said = text_until(self._lark, self._compiler.warn, term, quote)
        return None if said is None else f"{self._lark.text(quote)} {said}"

    def _bare_object(self, together: Conjunction, term: Term) -> str | None:
        members = members_of(self._compiler, term)
        if members is None or not all(BARE_WORD.fullmatch(it.key) for it in members):
            return None
        if not members and "properties" not in term.says:
            return None
        lark, parts = self._lark, ([], [])  # type: tuple[Lark, tuple[list[str], list[str]]]
        name = self._known[together] = lark.name()
        for it in members:
            said = f"{lark.text(f'{it.key}:')} {self.of(it.together)}"
            parts[0 if it.is_required else 1].append(said)
        lark.define(name, f'"{{" {lark.members(*parts, ",")} "}}"')
        return name

    def _bare_array(self, together: Conjunction, term: Term) -> str | None:
        equal = self._compiler.equal_items(term)
        if equal is None:
            return None
        inner, least, most = equal
        name = self._known[together] = self._lark.name()
        if most == 0:
            body = '"[" "]"'
        else:
            item = self.of(inner)
            count = f"{{{max(0, least - 1)},{'' if most is None else most - 1}}}"
            items = f'{item} ("," {item}){count}'
            body = f'"[" {items if least else f"({items})?"} "]"'
        self._lark.define(name, body)
        return name


def text_until(lark: Lark, warn: object, term: Term, end: str) -> str | None:
    """A text of a term without quotes, and what ends it, which is not in it; None if a value of it
    has the end in it."""
    if term.values is not None:
        values = [it for it in term.values if isinstance(it, str)]
        if any(end in it for it in values):
            return None
        return f"{lark.any_of([lark.spelled(it) for it in values])} {lark.text(end)}"
    said = strings_of(term, warn)  # type: ignore[arg-type]
    if said is None:
        return None
    if said.wanted or said.unwanted or said.values:
        return f"{_written(lark, said, end)} {lark.text(end)}"
    return lark.free(end, said.least, said.most)


def _written(lark: Lark, said: Strings, end: str) -> str:
    most = "" if said.most is None else said.most
    parts = [f"/(?s:.{{{said.least},{most}}})/", *map(regex, said.wanted)]
    unwanted = [*map(regex, said.unwanted), *(lark.spelled(it) for it in said.values)]
    inside = f"/{_END}/ {lark.spelled(end)} /{_END}/"
    parts.append(f"~({' | '.join([*unwanted, inside])})")
    return lark.terminal(" & ".join(parts))
