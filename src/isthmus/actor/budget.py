"""How much memory all actors of a runtime may have together, and who has it.

An instance asks before its memory grows, also when it is made. Images of memory and output on its
way are counted as well, since a guest decides how much of them the host holds. Where there is too
little left, idle actors are evicted first; where that does not help nobody gets more.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence

from isthmus.errors import Overloaded
from isthmus.memory import Image
from isthmus.units import HostAddr, format_nbytes

_MIN_SHARE = 4
"""Actors get one part in so many of the whole, however large the models are."""


class Budget:
    """See the module.

    `set_aside()` is how much of the limit is for something else now. `evict(nbytes)` gives idle
    actors' memory back and returns how much it was, and why it was not more; `refused` is told of
    what is refused.
    """

    def __init__(
        self,
        limit_nbytes: int,
        set_aside: Callable[[], int],
        evict: Callable[[int], tuple[int, str]],
        refused: Callable[[str], None],
    ) -> None:
        self._total = limit_nbytes
        self._set_aside = set_aside
        self._evict = evict
        self._refused = refused
        self._lock = threading.RLock()  # an image may be freed, and counted, wherever Python is
        self.used_nbytes = 0
        """Linear memory of all actors, images of it, and output on its way."""

    @property
    def limit_nbytes(self) -> int:
        """What all actors may have together now."""
        return max(self._total - self._set_aside(), self._total // _MIN_SHARE)

    def account(self) -> Account:
        """For one actor."""
        return Account(self)

    def take(self, nbytes: int) -> None:
        """Overloaded where so much is not left, and no idle actor has it."""
        while not self._try(nbytes):
            limit = self.limit_nbytes
            freed, why = self._evict(self.used_nbytes + nbytes - limit)
            if not freed:
                self._refused("memory")
                raise Overloaded(
                    f"{format_nbytes(nbytes)} of memory are not left: all actors together have "
                    f"{format_nbytes(self.used_nbytes)} of {format_nbytes(limit)} "
                    f"(Capacity.memory_nbytes), and {why}"
                )

    def freeze(self, base: HostAddr, nbytes: int, used: Sequence[tuple[int, int]]) -> Image:
        """As `Image.freeze`; what it copies counts for as long as anybody has the image.

        Overloaded, as `take`.
        """
        copied = sum(length for _, length in used)
        self.take(copied)
        try:
            image = Image.freeze(base, nbytes, used)
        except BaseException:
            self.give(copied)
            raise
        weakref.finalize(image, self.give, copied).atexit = False
        return image

    def give(self, nbytes: int) -> None:
        """Takes memory back."""
        with self._lock:
            self.used_nbytes -= nbytes

    def _try(self, nbytes: int) -> bool:
        limit = self.limit_nbytes
        with self._lock:
            if self.used_nbytes + nbytes > limit:
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

    def give(self, nbytes: int) -> None:
        """Takes back what it has no longer."""
        self._nbytes -= nbytes
        self._budget.give(nbytes)

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
