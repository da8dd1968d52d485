"""How much linear memory all actors of a runtime may have together, and who has it.

An instance asks before its memory grows, also when it is made. Where there is too little left,
idle actors are evicted first; where that does not help the memory does not grow.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from isthmus.errors import Overloaded
from isthmus.units import format_nbytes


class Budget:
    """See the module.

    `evict(nbytes)` gives idle actors' memory back and returns how much it was, and why it was not
    more; `refused` is told of what is refused.
    """

    def __init__(
        self,
        limit_nbytes: int | None,
        evict: Callable[[int], tuple[int, str]],
        refused: Callable[[str], None],
    ) -> None:
        self._limit = limit_nbytes
        self._evict = evict
        self._refused = refused
        self._lock = threading.Lock()
        self.used_nbytes = 0
        """Linear memory of all actors."""

    def account(self) -> Account:
        """For one actor."""
        return Account(self)

    def take(self, nbytes: int) -> None:
        """Overloaded where so much is not left, and no idle actor has it."""
        while not self._try(nbytes):
            assert self._limit is not None
            freed, why = self._evict(self.used_nbytes + nbytes - self._limit)
            if not freed:
                self._refused("memory")
                raise Overloaded(
                    f"{format_nbytes(nbytes)} of memory are not left: all actors together have "
                    f"{format_nbytes(self.used_nbytes)} of {format_nbytes(self._limit)} "
                    f"(Capacity.memory_nbytes), and {why}"
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
    """What one actor took of a budget, for all its bodies one after another."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._nbytes = 0
        self._kept = 0

    def take(self, nbytes: int) -> None:
        """As `Budget.take`, out of what was kept first."""
        kept = min(nbytes, self._kept)
        self._budget.take(nbytes - kept)
        self._kept -= kept
        self._nbytes += nbytes

    @contextlib.contextmanager
    def keep(self) -> Iterator[None]:
        """While open, what it has is kept for the body that takes the present one's place."""
        self._kept, self._nbytes = self._kept + self._nbytes, 0
        try:
            yield
        finally:
            kept, self._kept = self._kept, 0
            self._budget.give(kept)

    def clear(self) -> None:
        """Gives everything back: there is no body any more; a second call does nothing."""
        nbytes, self._nbytes = self._nbytes, 0
        self._budget.give(nbytes)
