"""How much linear memory all actors of a runtime may have together, and who has it.

An instance asks before its memory grows, also when it is made. Where there is too little left,
idle actors are evicted first; where that does not help the memory does not grow.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from isthmus.errors import Overloaded
from isthmus.units import format_nbytes


class Budget:
    """See the module. `evict(nbytes)` gives idle actors' memory back; returns how much it was."""

    def __init__(self, limit_nbytes: int | None, evict: Callable[[int], int]) -> None:
        self._limit = limit_nbytes
        self._evict = evict
        self._lock = threading.Lock()
        self.used_nbytes = 0
        """Linear memory of all actors."""

    def account(self) -> Account:
        """For one instance."""
        return Account(self)

    def take(self, nbytes: int) -> None:
        """Overloaded where so much is not left, and no idle actor has it."""
        while not self._try(nbytes):
            assert self._limit is not None
            if not self._evict(self.used_nbytes + nbytes - self._limit):
                raise Overloaded(
                    f"{format_nbytes(nbytes)} of memory are not left: all actors together have "
                    f"{format_nbytes(self.used_nbytes)} of {format_nbytes(self._limit)} "
                    "(Capacity.memory_nbytes), and none is idle that could be evicted"
                )

    def give(self, nbytes: int) -> None:
        """Takes memory back."""
        with self._lock:
            self.used_nbytes -= nbytes

    def _try(self, nbytes: int) -> bool:
        with self._lock:
            if self._limit is not None and self.used_nbytes + nbytes > self._limit:
                return False
            self.used_nbytes += nbytes
            return True


class Account:
    """What one instance took of a budget; `close` gives it back."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._nbytes = 0

    def take(self, nbytes: int) -> None:
        """See `Budget.take`."""
        self._budget.take(nbytes)
        self._nbytes += nbytes

    def close(self) -> None:
        """Gives everything back; a second call does nothing."""
        self._budget.give(self._nbytes)
        self._nbytes = 0
