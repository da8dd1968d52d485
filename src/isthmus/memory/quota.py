"""What a process has a fixed number of: mappings and open files. Regions and images share a part.

Whoever meets the end of either is not always the one who used it up: an engine that cannot map the
code of a new guest panics, and a server that cannot accept a connection answers nobody. So memories
and images take from a quota, which leaves the rest of the process enough.
"""

from __future__ import annotations

import resource
import threading
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import NoReturn

from isthmus.errors import Overloaded

_PART_OF_MAPPINGS = 0.75
"""Share of the process's mappings. The rest is for threads (2 to 4 each), code and libraries."""
_PART_OF_FILES = 0.75
"""Share of the process's open files. The rest is for connections, models and the caller's own."""
_UNLIMITED = 1 << 60
_MAX_MAP_COUNT = Path("/proc/sys/vm/max_map_count")


class Quota:
    """A number of things that all memories and images together may have. Used by any thread."""

    def __init__(self, what: str, hint: str, find_limit: Callable[[], int]) -> None:
        """`find_limit` is called once, when something is first taken."""
        self._what = what
        self._hint = hint
        self._find_limit = find_limit
        self._lock = threading.Lock()
        self.n_taken = 0
        """How many are taken now."""

    @cached_property
    def limit(self) -> int:
        """How many there may be."""
        return self._find_limit()

    @property
    def n_left(self) -> int:
        """How many may still be taken."""
        return self.limit - self.n_taken

    def try_take(self, n: int) -> bool:
        """Takes `n` more that one can do without; false, and nothing is taken, if few are left.

        A quarter is left to those that need some: what many ask for who could do without is
        refused before a new memory is.
        """
        return self._try_take(n, self._most_spare)

    def take(self, n: int) -> None:
        """Takes `n` more. Overloaded if so many are not left."""
        if not self._try_take(n, self.limit):
            self._refuse()

    def require_spare(self) -> None:
        """Overloaded if no more is left than the quarter for those that cannot do without."""
        if self.n_taken >= self._most_spare:
            self._refuse()

    def give(self, n: int) -> None:
        """Gives `n` back."""
        with self._lock:
            self.n_taken -= n

    @property
    def _most_spare(self) -> int:
        return self.limit * 3 // 4

    def _refuse(self) -> NoReturn:
        raise Overloaded(
            f"{self.n_taken} of {self.limit} {self._what} are taken by actors' memories, and more "
            f"are needed: close actors, or raise {self._hint}"
        )

    def _try_take(self, n: int, most: int) -> bool:
        with self._lock:
            if n > 0 and self.n_taken + n > most:
                return False
            self.n_taken += n
            return True


class Share:
    """How many of a quota one owner has. Used by one thread at a time."""

    def __init__(self, quota: Quota) -> None:
        self._quota = quota
        self.n = 0
        """How many it has."""

    def try_resize(self, n: int) -> bool:
        """Has `n` from now on; false, and nothing changes, if few are left: see `try_take`."""
        if not self._quota.try_take(n - self.n):
            return False
        self.n = n
        return True

    def resize(self, n: int) -> None:
        """Has `n` from now on. Overloaded, and nothing changes, if so many are not left."""
        self._quota.take(n - self.n)
        self.n = n

    def close(self) -> None:
        """Gives all back; a second call does nothing."""
        n, self.n = self.n, 0
        self._quota.give(n)


def _find_most_mappings() -> int:
    try:
        return int(_PART_OF_MAPPINGS * int(_MAX_MAP_COUNT.read_text()))
    except (OSError, ValueError):  # not Linux: there is no such limit
        return _UNLIMITED


def _find_most_files() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _UNLIMITED if soft == resource.RLIM_INFINITY else int(_PART_OF_FILES * soft)


MAPPINGS = Quota("mappings of memory", "vm.max_map_count", _find_most_mappings)
FILES = Quota("open files", "the limit of open files (ulimit -n)", _find_most_files)
