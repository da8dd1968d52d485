"""An actor as the scheduler sees it, and how much of a queue each has had."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from weakref import WeakKeyDictionary

from isthmus.device.base import Device
from isthmus.device.compute_thread import Bell
from isthmus.model import Model

_numbers = itertools.count()


class Claimant:
    """An actor as the scheduler sees it. Used by the one thread that handles its message.

    `check` raises where the message is to end; `deadline` says when it will, on the clock of
    time.monotonic. `interrupt` may be called from any thread.
    """

    def __init__(
        self,
        device: Device,
        check: Callable[[], None],
        deadline: Callable[[], float | None],
        weight: float = 1.0,
    ) -> None:
        self.check = check
        self.number = next(_numbers)
        self.model: Model | None = None
        """The scheduler's: of its last decode step."""
        self._deadline = deadline
        self._weight = weight
        self._bell = Bell(device.compute_thread)

    @property
    def at_home(self) -> bool:
        """Whether it waits at the device's thread, which computes meanwhile."""
        return self._bell.at_home

    def cost(self, n_tokens: int) -> float:
        """What so many tokens are to it: the larger its weight, the less."""
        return n_tokens / self._weight

    def interrupt(self) -> None:
        """Has it look whether its message is to end, or whether its turn has come."""
        self._bell.ring()

    def wait(self, at_most_s: float | None, *, whatever: bool = False) -> None:
        """Until it is interrupted, its time is over, or, if not `whatever`, its message's is."""
        deadline = None if whatever else self._deadline()
        if deadline is not None:
            left = max(deadline - time.monotonic(), 0.0)
            at_most_s = left if at_most_s is None else min(at_most_s, left)
        self._bell.wait(at_most_s)


class Shares:
    """Who has used how much of one queue: tokens divided by weights, its virtual time.

    Each queue has its own: a prefilled token is many times cheaper than a decoded one, and nobody
    is to pay for it with the latter. Changed under the queue's lock.
    """

    def __init__(self) -> None:
        self._used: WeakKeyDictionary[Claimant, float] = WeakKeyDictionary()
        self._least = 0.0

    def enter(self, claimant: Claimant) -> None:
        """Whoever was away has no claim to what it did not use meanwhile."""
        self._used[claimant] = max(self._used.get(claimant, 0.0), self._least)

    def used(self, claimant: Claimant) -> float:
        """What it has had."""
        return self._used[claimant]

    def goes_first(self, claimant: Claimant) -> None:
        """Virtual time is that of whoever is served."""
        self._least = self._used[claimant]

    def charge(self, claimant: Claimant, n_tokens: int) -> None:
        """Notes what it was given."""
        self._used[claimant] += claimant.cost(n_tokens)
