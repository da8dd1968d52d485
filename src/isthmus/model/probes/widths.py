"""Classes of width: ranges of row counts within which a row's bits depend on nothing but the row.

A device chooses the kernel of a product by the number of its columns, and each kernel adds in an
order of its own. So one agent's logits depend on how many others are in its pass, unless every pass
has a number of rows within one class. A model is loaded into one class and stays in it.

======  ========================================================================================
name    which class
======  ========================================================================================
alone   the one with 1 row: its bits are those of a step by itself, which are libllama's
many    the one for many agents: a step with fewer rows is filled with rows of nobody
9-128   the one with exactly these bounds
======  ========================================================================================
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from isthmus.errors import SettingsError

MAX_ROWS = 128
"""Rows of the largest pass that a card is asked about."""
MAX_ON_HOST = 32
"""The same of a processor, where each product takes longer than a probe may, and more rows in one
pass gain little."""
_AGENTS = 64
_PASS_COST = 60
"""What reading the weights takes, in units of what a row adds: on an H200, 40 to 140 as of
2026-11-29."""
_NAMED = re.compile(r"([1-9][0-9]{0,3})(?:-([1-9][0-9]{0,3}))?")


@dataclass(frozen=True, order=True)
class Width:
    """A class: the passes with `least` to `most` rows, both included, 1 <= least <= most."""

    least: int
    most: int

    def cost(self, n_rows: int) -> float:
        """Time that a step of so many rows takes, in units of what a row adds to a pass."""
        n_passes = -(-n_rows // self.most)
        return _PASS_COST * n_passes + max(n_rows, self.least * n_passes)

    def __contains__(self, n_rows: int) -> bool:
        return self.least <= n_rows <= self.most

    def __str__(self) -> str:
        return f"{self.least}-{self.most}" if self.most > self.least else f"{self.least}"

    @staticmethod
    def try_parse(text: str) -> Width | None:
        """The class that `str` made this text of; None if the text is not of that form."""
        found = _NAMED.fullmatch(text)
        if found is None:
            return None
        least, most = int(found[1]), int(found[2] or found[1])
        return Width(least, most) if least <= most else None


SINGLE = Width(1, 1)
"""One row by itself, which is always exact."""


@dataclass(frozen=True)
class Widths:
    """The classes of one model on one device, ascending; numbers between them are in none."""

    classes: tuple[Width, ...] = (SINGLE,)
    """The first one has 1 row."""

    def __str__(self) -> str:
        return ", ".join(map(str, self.classes))

    @property
    def alone(self) -> Width:
        """The class of a step by itself."""
        return self.classes[0]

    @property
    def many(self) -> Width:
        """The class in which steps of 1 to 64 agents take the least time, each as likely as others.

        As a rule that is the one that reaches furthest; not one that begins so high that its rows
        are nobody's most of the time.
        """
        return min(self.classes, key=lambda it: sum(it.cost(n) for n in range(1, _AGENTS + 1)))

    def of(self, n_rows: int) -> Width | None:
        """The class of a pass with so many rows."""
        return next((it for it in self.classes if n_rows in it), None)

    def named(self, name: str) -> Width:
        """The class of that name; see the module. SettingsError if there is none."""
        if name in ("alone", "many"):
            return self.alone if name == "alone" else self.many
        wanted = Width.try_parse(name)
        if wanted not in self.classes:
            raise SettingsError(
                f"width is {name!r}; the model's classes on this device are {self}: give one of "
                "them, alone or many"
            )
        return wanted

    def common(self, other: Widths) -> Widths:
        """The classes of passes that multiply with both: wherever one has a bound, both have."""
        shared = (
            Width(max(a.least, b.least), min(a.most, b.most))
            for a in self.classes
            for b in other.classes
            if max(a.least, b.least) <= min(a.most, b.most)
        )
        return Widths(tuple(sorted(shared)))

    @staticmethod
    def try_parse(text: str) -> Widths | None:
        """The classes that `str` made this text of; None if the text is not of that form."""
        found = [Width.try_parse(part) for part in text.split(", ")]
        classes = tuple(it for it in found if it is not None)
        ascending = all(a.most < b.least for a, b in pairwise(classes))
        whole = len(classes) == len(found) and ascending and classes[0].least == 1
        return Widths(classes) if whole else None
