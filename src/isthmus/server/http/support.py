"""Tables of what a request may have, and what becomes of each part of it.

Refusals take their reasons from them, docs/server.md shows them, and tests hold them to the types
that bodies are decoded into.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

_DATE = re.compile(r"_[0-9_]+\Z")


class Support(Enum):
    """What becomes of a part of a request."""

    DONE = "done"
    WITHOUT_EFFECT = "without effect"
    LEFT_OUT = "left out, with a warning"
    REFUSED = "refused"


@dataclass(frozen=True)
class Row:
    """A line of a table."""

    support: Support
    said: str = ""
    """What is done, or why nothing is; callers are told why something is refused or left out."""
    silent: tuple[object, ...] = ()
    """Values beside null with which a field that is refused says nothing, and is accepted."""

    @property
    def is_refused(self) -> bool:
        """Whether it is 400."""
        return self.support is Support.REFUSED


Table: TypeAlias = "Mapping[str, Row]"
"""Rows by the name of a field, or by the `type` of an item, block or tool."""


def done(said: str = "") -> Row:
    """A row of what is done."""
    return Row(Support.DONE, said)


def without_effect(said: str) -> Row:
    """A row of what is accepted and changes nothing."""
    return Row(Support.WITHOUT_EFFECT, said)


def left_out(said: str) -> Row:
    """A row of what the model does not get, of which the answer warns."""
    return Row(Support.LEFT_OUT, said)


def refused(said: str, *silent: object) -> Row:
    """A row of what is 400, unless it has one of the values that say nothing."""
    return Row(Support.REFUSED, said, silent)


def kind_of_tool(tools: Table, kind: str) -> str:
    """The name of the row of a kind of tool; the kind itself if there is none.

    A kind may end with a date that its row does not have, or with anything for the `*` of its row.
    """
    for name in (kind, _DATE.sub("", kind)):
        if name in tools:
            return name
    starred = (it for it in tools if it.endswith("*") and kind.startswith(it[:-1]))
    return next(starred, kind)


def as_markdown(tables: Mapping[str, Table]) -> str:
    """Tables as docs/server.md has them, by the words at the head of their first columns."""
    return "\n".join(_rendered(title, rows) for title, rows in tables.items())


def _rendered(title: str, rows: Table) -> str:
    lines = [f"| {title} | what becomes of it | |", "| --- | --- | --- |"]
    lines += [f"| `{name}` | {row.support.value} | {_said(row)} |" for name, row in rows.items()]
    return "\n".join(lines) + "\n"


def _said(row: Row) -> str:
    values = " or ".join(f"`{json.dumps(it)}`" for it in row.silent)
    return f"{row.said}; {values} says nothing, and is accepted" if values else row.said
