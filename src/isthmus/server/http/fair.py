"""Places that several owners share: what one of them floods does not keep the others waiting.

An owner is the name of a key, or None for everybody if there are no keys. With one owner a `Room`
is a semaphore with a queue. With several, whoever has fewest places is next; who has none gets one
of as many spare places at once; and if the queue is full the longest line loses its last.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import TypeAlias, TypeVar

from isthmus.errors import Overloaded
from isthmus.server.http.entry import current

Owner: TypeAlias = "str | None"
_T = TypeVar("_T")


class Room:
    """See the module. Used by one event loop. `waiting` is how many may wait; None for any number.

    At most twice as many as `places` are taken: the second half only by owners who have none.
    """

    def __init__(self, places: int, waiting: int | None = None) -> None:
        self._places = places
        self._waiting = waiting
        self._taken: Counter[Owner] = Counter()
        self._lines: dict[Owner, deque[asyncio.Future[None]]] = {}
        self._served: dict[Owner, int] = {}
        """When each owner was served last, as a count of all that were."""
        self._n_served = 0

    @property
    def n_waiting(self) -> int:
        """How many wait, of all owners."""
        return sum(map(len, self._lines.values()))

    def require(self, owner: Owner) -> None:
        """Overloaded if the owner could neither have a place now nor wait for one."""
        mine, longest = (
            len(self._lines.get(owner, ())),
            max(map(len, self._lines.values()), default=0),
        )
        if not self._may_take(owner) and self._is_full() and mine >= longest:
            raise Overloaded(f"{self.n_waiting} requests wait already; try again later")

    @contextlib.asynccontextmanager
    async def place(self, owner: Owner) -> AsyncIterator[None]:
        """A place, once there is one. Overloaded."""
        asked = time.monotonic()
        await self.take(owner)
        current().take_place(asked)
        try:
            yield
        finally:
            self.give_back(owner)

    async def take(self, owner: Owner) -> None:
        """Waits for a place, which must be given back. Overloaded."""
        if owner not in self._lines and self._may_take(owner):
            self._serve(owner)
            return
        self.require(owner)
        if self._is_full():
            self._refuse_last()
        place = asyncio.get_running_loop().create_future()
        self._lines.setdefault(owner, deque()).append(place)
        try:
            await place
        except BaseException:
            if place.done() and not place.cancelled() and place.exception() is None:
                self.give_back(owner)  # it came at the moment when nobody wanted it any more
            self._leave(owner, place)
            raise

    def give_back(self, owner: Owner) -> None:
        """Ends one's use of a place."""
        self._taken[owner] -= 1
        if not self._taken[owner]:
            del self._taken[owner]
        while able := [it for it in self._lines if self._may_take(it)]:
            following = min(able, key=self._precedence)
            place = self._lines[following][0]
            self._leave(following, place)
            if not place.done():  # it was cancelled, and has not heard of it yet
                self._serve(following)
                place.set_result(None)

    # ------------------------------------------------------------------ parts

    def _serve(self, owner: Owner) -> None:
        self._taken[owner] += 1
        self._n_served += 1
        self._served[owner] = self._n_served

    def _may_take(self, owner: Owner) -> bool:
        n = self._taken.total()
        return n < self._places or (not self._taken[owner] and n < 2 * self._places)

    def _is_full(self) -> bool:
        return self._waiting is not None and self.n_waiting >= self._waiting

    def _precedence(self, owner: Owner) -> tuple[int, int]:
        """Who has fewest places comes first; of several the one who was served longest ago."""
        return self._taken[owner], self._served.get(owner, 0)

    def _refuse_last(self) -> None:
        longest = max(self._lines, key=lambda it: len(self._lines[it]))
        place = self._lines[longest][-1]
        self._leave(longest, place)
        place.set_exception(Overloaded("others wait for a place too; try again later"))

    def _leave(self, owner: Owner, place: asyncio.Future[None]) -> None:
        line = self._lines.get(owner, deque())
        with contextlib.suppress(ValueError):
            line.remove(place)
        if not line and owner in self._lines:
            del self._lines[owner]


class Threads:
    """Threads for what waits or takes long, shared fairly by owners."""

    def __init__(self, n_threads: int, name: str, waiting: int | None = None) -> None:
        self._pool = ThreadPoolExecutor(2 * n_threads, name)
        self._room = Room(n_threads, waiting)

    async def do(self, owner: Owner, what: Callable[[], _T]) -> _T:
        """What `what` returns. Overloaded. A caller who leaves has its place until that ends, and
        what the request uses stays until then."""
        await self._room.take(owner)
        try:
            work = asyncio.get_running_loop().run_in_executor(
                self._pool, partial(copy_context().run, what)
            )
        except BaseException:
            self._room.give_back(owner)
            raise
        current().work_until(work)
        work.add_done_callback(lambda done: self._end(owner, done))
        return await asyncio.shield(work)

    def _end(self, owner: Owner, done: asyncio.Future[_T]) -> None:
        self._room.give_back(owner)
        if not done.cancelled():
            done.exception()  # is told to whoever waits, if anybody does

    def close(self) -> None:
        """Begins nothing any more, and waits for what has begun."""
        self._pool.shutdown(cancel_futures=True)
