"""Requests that wait for models, first come first served, and shared fairly by owners."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from isthmus.errors import Overloaded
from isthmus.server.http.fair import Owner
from isthmus.server.models.resident import Resident

_FULL = "requests wait for models already; try again later"


@dataclass(eq=False)
class Ticket:
    """A request that waits until all of some models are in memory."""

    residents: Sequence[Resident]
    owner: Owner
    granted: asyncio.Future[None]
    """Done once each model is taken for it."""
    since: float = field(default_factory=time.monotonic)

    @property
    def is_granted(self) -> bool:
        """Whether its models were taken for it."""
        it = self.granted
        return it.done() and not it.cancelled() and it.exception() is None

    @property
    def names(self) -> str:
        """The models, for whoever reads it."""
        return ", ".join(it.name for it in self.residents)


class Line:
    """See the module. Of more than `most`, the owner with most tickets loses its last."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._tickets: list[Ticket] = []

    def __iter__(self) -> Iterator[Ticket]:
        return iter(tuple(self._tickets))

    def __len__(self) -> int:
        return len(self._tickets)

    def add(self, ticket: Ticket) -> None:
        """Has one more wait. Overloaded."""
        if len(self._tickets) >= self._most:
            self._refuse_one(ticket.owner)
        self._tickets.append(ticket)

    def remove(self, ticket: Ticket) -> None:
        """Ends its wait; nothing if it does not wait."""
        if ticket in self._tickets:
            self._tickets.remove(ticket)

    def grant(self, ticket: Ticket) -> None:
        """Takes its models for it."""
        self.remove(ticket)
        if not ticket.granted.done():  # it was cancelled, and has not heard of it yet
            for it in ticket.residents:
                it.take()
            ticket.granted.set_result(None)

    def fail(self, resident: Resident, error: Callable[[], Exception]) -> None:
        """Tells all who want a model that it cannot be had."""
        for ticket in self:
            if resident in ticket.residents:
                self.remove(ticket)
                if not ticket.granted.done():
                    ticket.granted.set_exception(error())

    def _refuse_one(self, newcomer: Owner) -> None:
        n_of = Counter(it.owner for it in self._tickets)
        longest = max(n_of, key=lambda it: n_of[it], default=newcomer)
        if n_of[newcomer] >= n_of[longest]:
            raise Overloaded(f"{len(self._tickets)} {_FULL}")
        last = next(it for it in reversed(self._tickets) if it.owner == longest)
        self.remove(last)
        if not last.granted.done():
            last.granted.set_exception(Overloaded(f"{self._most} {_FULL}"))
