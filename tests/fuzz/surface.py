"""A surface that strangers reach, as the fuzzers see it: inputs, and what is done with them."""

from __future__ import annotations

import importlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from isthmus.config import Capacity

MIB = 1 << 20
NAMES = (
    "modules",
    "gguf",
    "adapters",
    "snapshots",
    "stores",
    "http",
    "prompts",
    "abi",
    "web",
    "objects",
    "peers",
    "mcp",
    "adopted",
    "scripts",
    "media",
)
"""The surfaces; each is a file here with a class `Fuzz`."""


CAPACITY = Capacity(initialize_s=2.0, replay_s=2.0)
"""Guests that begin for ever are waited for no longer, so that a case is a short one."""


class Surface(ABC):
    """One surface, opened in a child process. An input is bytes, so that it can be kept as a file.

    `run` returns a word for what came of an input. An IsthmusError is a good end as well; any other
    exception is a finding, and so is the end of the child.
    """

    corpus: ClassVar[Mapping[str, Callable[[], bytes]]] = {}
    """Inputs by name: past findings, and what came closest."""
    cpu_s: ClassVar[float] = 30.0
    """Seconds of processor time that one input may take, that of grandchildren included."""
    wall_s: ClassVar[float] = 150.0
    """Seconds until an input that sleeps counts as a hang."""
    memory_nbytes: ClassVar[int] = 1200 * MIB
    """Resident bytes that the child and its children may have together."""
    n_short: ClassVar[int] = 12
    """Seeds that the ordinary suite tries."""

    def __init__(self, folder: Path) -> None:
        """`folder` is empty and the surface's own."""
        self.folder = folder

    @staticmethod
    def is_ready() -> bool:
        """Whether this machine has what the surface needs."""
        return True

    @abstractmethod
    def make(self, rng: random.Random) -> bytes:
        """An input; equal seeds give equal bytes."""

    @abstractmethod
    def run(self, data: bytes) -> str:
        """Does with an input what a stranger could have done with it."""

    def smaller(self, data: bytes) -> Iterator[bytes]:
        """Simpler inputs that may fail in the same way, most promising first."""
        yield from ()

    def close(self) -> None:  # noqa: B027 - most have nothing to give back
        """Gives everything back."""

    def input(self, case: str) -> bytes:
        """The input that a case names: a seed, a name in the corpus, or @ and a path."""
        if case.startswith("@"):
            return Path(case[1:]).read_bytes()
        if case in self.corpus:
            return self.corpus[case]()
        return self.make(random.Random(int(case)))


def surface_class(name: str) -> type[Surface]:
    """The class `Fuzz` of that surface's module."""
    found: type[Surface] = importlib.import_module(f"tests.fuzz.{name}").Fuzz
    return found


def halves(items: list[bytes]) -> Iterator[list[bytes]]:
    """The list without some part of it, large parts first."""
    size = len(items) // 2
    while size:
        for begin in range(0, len(items), size):
            yield items[:begin] + items[begin + size :]
        size //= 2
