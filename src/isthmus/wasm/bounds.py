"""How large a guest's module may be, part by part.

A compiler takes memory and time for each part of a module, and some parts of two bytes cost it
kilobytes. Each bound is well above what toolchains emit for programs of 20 MB: esbuild, 14 MB of
Go, has 5,307 functions, 98,450 data segments, 283,115 entries in branch tables, and blocks 3,289
deep. What is within all bounds and still too much meets the limits of the compiler's process
(`compiling.py`).
"""

from __future__ import annotations

import enum

from isthmus.config import MAX_GUEST_GLOBALS, MAX_GUEST_NBYTES
from isthmus.errors import GuestInvalid
from isthmus.units import MIB

MAX_TABLE_ELEMENTS = 1 << 18
"""Elements of all tables together at their begin; each takes 8 bytes of every actor's memory, which
no budget counts. A table that grows is refused anyway."""


class Bound(enum.Enum):
    """What is bounded, as an error names it, and how much there may be."""

    NBYTES = ("bytes", MAX_GUEST_NBYTES)
    SECTIONS = ("sections", 1_000)
    TYPES = ("function types", 10_000)
    VALUES = ("parameters or results in one function's type", 1_000)
    IMPORTS = ("imports", 1_000)
    FUNCTIONS = ("functions", 100_000)
    """Each takes 6 KB of the compiler's memory and 60 µs, however short it is."""
    TABLES = ("tables", 8)
    TABLE_ELEMENTS = ("elements in its tables", MAX_TABLE_ELEMENTS)
    GLOBALS = ("globals", 10_000)
    MUTABLE_GLOBALS = ("mutable globals", MAX_GUEST_GLOBALS)
    """As many as a snapshot holds."""
    EXPORTS = ("exports", 10_000)
    NAME_NBYTES = ("bytes of imports and exports with their names", 4 * MIB)
    ELEMENT_SEGMENTS = ("element segments", 10_000)
    DATA_SEGMENTS = ("data segments", 100_000)
    BRANCHES = ("entries in its branch tables", 2_000_000)
    BLOCKS = ("blocks inside each other", 50_000)
    """Go nests one for each call in a function."""
    LOOPS = ("loops inside each other", 500)
    """A compiler's time grows with the square: 10 ms for 500, 12 s for 20,000."""

    @property
    def most(self) -> int:
        """The largest count that is accepted."""
        return int(self.value[1])


def require(bound: Bound, found: int) -> int:
    """`found`, if it is within a bound. GuestInvalid, without the guest's name, if it is not."""
    if found > bound.most:
        raise GuestInvalid(
            f"has {found:,} {bound.value[0]}, and {bound.most:,} are the most: "
            "make it smaller, or split it into several guests"
        )
    return found
