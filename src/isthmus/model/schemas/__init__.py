"""JSON schemas as clients send them, made into grammars before llguidance sees them.

A text that the grammar allows follows the schema, and one that follows it is allowed, but for what
a warning names and for how it is laid out: keys in the schema's order, one space after commas and
colons, numbers and strings in their plainest spelling.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from isthmus.errors import GrammarError
from isthmus.model.schemas.compiler import Compiler
from isthmus.model.schemas.objects import Member, members_of
from isthmus.model.schemas.rules import LARGE_NBYTES, Rules

__all__ = [
    "Compiler",
    "Conjunction",
    "Member",
    "Prepared",
    "Rules",
    "Strings",
    "Term",
    "members_of",
    "prepared",
    "strings_of",
]

from isthmus.model.schemas.scalars import Strings, strings_of
from isthmus.model.schemas.terms import Conjunction, Term


@dataclass(frozen=True)
class Prepared:
    """A schema that was made into a grammar."""

    lark: str
    """The grammar, in llguidance's dialect of Lark."""
    warnings: tuple[str, ...]
    """Sentences about what it does not enforce, each with a JSON pointer."""


def prepared(source: str) -> Prepared:
    """The grammar of a JSON schema. GrammarError, with a JSON pointer to what cannot be."""
    try:
        root = json.loads(source)
    except RecursionError:
        raise GrammarError("#: schemas are nested too deeply") from None
    except ValueError as error:
        raise GrammarError(f"the schema is not JSON: {error}") from None
    rules = Rules(LARGE_NBYTES)
    compiler = Compiler(rules, root)
    start = compiler.add()
    return Prepared(rules.source(start), compiler.warnings)
