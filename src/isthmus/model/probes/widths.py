"""Classes of width: ranges of row counts within which a row's bits depend on nothing but the row.

A device chooses the kernel of a product by the number of its columns, and each kernel adds in an
order of its own. So one agent's logits depend on how many others are in its pass, unless every pass
has a number of rows within one class. A model is loaded into one class and stays in it.

======= ========================================================================================
name    which class
======= ========================================================================================
alone   the one with 1 row: its bits are those of a step by itself, which are libllama's
few     the one in which steps of 1 to 8 agents take the least time
many    the same of 1 to 64 agents: a step with fewer rows is filled with rows of nobody
9-128   the one with exactly these bounds
1-128/4 the one of 1 to 4 rows, in panels
======= ========================================================================================

A card can multiply a matrix with columns in panels: each panel of 4, say, has the kernel of 4
columns and the bits of that class, and all of them are one product, which finds the matrix in the
card's cache. So a pass has many rows and the bits of few. Numbers of rows above a panel are filled
up to whole ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from isthmus.errors import SettingsError
from isthmus.units import align_up

MAX_ROWS = 128
"""Rows of the largest pass that a card is asked about."""
MAX_ON_HOST = 32
"""The same of a processor, where each product takes longer than a probe may, and more rows in one
pass gain little."""
_FEW, _MANY = 8, 64
"""Agents of the classes of that name."""
_PASS_COST = 60
"""What reading the weights takes, in units of what a row adds: on an H200, 40 to 140 as of
2026-11-29."""
_PANEL_COSTS = 15, 6, 2.75
"""The same of a pass in panels: what it takes, what a panel adds, and a column of each panel. On an
H200, 2026-11-30."""
_NAMED = re.compile(r"([1-9][0-9]{0,3})(?:-([1-9][0-9]{0,3})(?:/([1-9][0-9]{0,3}))?)?")


@dataclass(frozen=True, order=True)
class Width:
    """A class: the passes with `least` to `most` rows, both included, 1 <= least <= most."""

    least: int
    most: int
    panel: int = 0
    """Columns of a panel, `most` a multiple of them; 0: the products have all rows as columns."""

    def cost(self, n_rows: int) -> float:
        """Time that a step of so many rows takes, in units of what a row adds to a pass."""
        n_passes = -(-n_rows // self.most)
        if self.panel:
            base, each, column = _PANEL_COSTS
            return base * n_passes + (each + column * self.panel) * -(-n_rows // self.panel)
        return _PASS_COST * n_passes + max(n_rows, self.least * n_passes)

    def filled(self, n_rows: int) -> int:
        """The rows of a pass with `n_rows` of somebody, at most `most`."""
        n = max(n_rows, self.least)
        return align_up(n, self.panel) if self.panel and n > self.panel else n

    def in_panels(self, most: int) -> Width | None:
        """The class with the bits of this one that reaches to `most`; None if none reaches
        further."""
        reached = most // self.most * self.most
        return Width(self.least, reached, self.most) if reached > self.most else None

    def __contains__(self, n_rows: int) -> bool:
        return self.least <= n_rows <= self.most

    def __str__(self) -> str:
        text = f"{self.least}-{self.most}" if self.most > self.least else f"{self.least}"
        return f"{text}/{self.panel}" if self.panel else text

    @staticmethod
    def try_parse(text: str) -> Width | None:
        """The class that `str` made this text of; None if the text is not of that form."""
        found = _NAMED.fullmatch(text)
        if found is None:
            return None
        least, most, panel = int(found[1]), int(found[2] or found[1]), int(found[3] or 0)
        if panel and (most % panel or not least <= panel < most):
            return None
        return Width(least, most, panel) if least <= most else None


SINGLE = Width(1, 1)
"""One row by itself, which is always exact."""


@dataclass(frozen=True)
class Widths:
    """The classes of one model on one device, ascending; numbers between them are in none."""

    classes: tuple[Width, ...] = (SINGLE,)
    """The first one has 1 row."""
    panelled: tuple[Width, ...] = ()
    """Those in panels: each has the bits of one of `classes`, and reaches further."""

    def __str__(self) -> str:
        return ", ".join(map(str, (*self.classes, *self.panelled)))

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
        return self._quickest(_MANY)

    @property
    def few(self) -> Width:
        """The same of 1 to 8 agents: where the device multiplies in panels, a lone one takes the
        time that it takes by itself."""
        return self._quickest(_FEW)

    def _quickest(self, n_agents: int) -> Width:
        found = (*self.classes, *self.panelled)
        return min(found, key=lambda it: sum(it.cost(n) for n in range(1, n_agents + 1)))

    def of(self, n_rows: int) -> Width | None:
        """The class of a pass with so many rows."""
        return next((it for it in self.classes if n_rows in it), None)

    def reaching(self, width: Width) -> Width:
        """The class with the bits of this one that has the most rows."""
        same = (it for it in self.panelled if (it.least, it.panel) == (width.least, width.most))
        return next(same, width)

    def named(self, name: str) -> Width:
        """The class of that name; see the module. SettingsError if there is none."""
        if name in ("alone", "few", "many"):
            return {"alone": self.alone, "few": self.few, "many": self.many}[name]
        wanted = Width.try_parse(name)
        if wanted not in (*self.classes, *self.panelled):
            raise SettingsError(
                f"width is {name!r}; the model's classes on this device are {self}: give one of "
                "them, alone, few or many"
            )
        return wanted

    def common(self, other: Widths) -> Widths:
        """The classes of passes that multiply with both: wherever one has a bound, both have.

        Without those in panels.
        """
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
        classes = tuple(it for it in found if it is not None and not it.panel)
        panelled = tuple(it for it in found if it is not None and it.panel)
        ascending = all(a.most < b.least for a, b in pairwise(classes))
        of_them = all(Width(it.least, it.panel) in classes for it in panelled)
        whole = found == [*classes, *panelled] and ascending and of_them
        return Widths(classes, panelled) if whole and classes[0].least == 1 else None
