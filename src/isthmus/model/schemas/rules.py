"""Rules and terminals of a grammar in llguidance's dialect of Lark, while it is written."""

from __future__ import annotations

from isthmus.config import MAX_GRAMMAR_NBYTES
from isthmus.errors import GrammarError
from isthmus.model.checks import Check, nothing

LARGE_NBYTES = 4 * MAX_GRAMMAR_NBYTES
"""Bytes of a grammar that is made of a schema here, and is no message of a guest."""
_MAX_STEPS = 200_000
"""Steps in which all schemas of one grammar are made into rules: about a second."""


class Rules:
    """See the module. Names are given in order, so that equal schemas have equal grammars."""

    def __init__(self, most_nbytes: int = MAX_GRAMMAR_NBYTES, check: Check = nothing) -> None:
        """`check` is called at each step of what makes rules of schemas."""
        self._most_nbytes = most_nbytes
        self._check = check
        self._n_steps = 0
        self._rules: list[str] = []
        self._n_names = self._n_chars = 0
        self._known: dict[str, str] = {}

    def source(self, start: str) -> str:
        """The grammar's source, where a text is `start`, an expression."""
        return "\n".join([f"start: {start}", *self._rules, ""])

    def name(self) -> str:
        """The name of a rule that `define` gives its body."""
        self._n_names += 1
        return f"r{self._n_names}"

    def define(self, name: str, body: str, attributes: str = "") -> None:
        """Gives a name its body. GrammarError if the grammar becomes larger than one may be: a
        small schema can refer to a large one in many places."""
        self._rules.append(f"{name}{attributes}: {body}")
        self._n_chars += len(self._rules[-1])
        if self._n_chars > self._most_nbytes:
            raise GrammarError("the schema is too large for a grammar; make it simpler")

    def can_spend(self, n: int) -> bool:
        """Counts steps; False if there are too many, so that schemas keep no thread for long."""
        self._check()
        self._n_steps += n
        return self._n_steps <= _MAX_STEPS

    def rule(self, body: str, attributes: str = "") -> str:
        """A new rule; returns its name."""
        name = self.name()
        self.define(name, body, attributes)
        return name

    def same(self, body: str) -> str:
        """The rule with this body, made once."""
        if body not in self._known:
            self._known[body] = self.rule(body)
        return self._known[body]

    def terminal(self, body: str) -> str:
        """The terminal with this body, made once: there, `&` and `~` may be used."""
        if body not in self._known:
            self._known[body] = self.name().upper()
            self.define(self._known[body], body)
        return self._known[body]
