"""The threads that handle messages: so many at a time, and so many messages that wait.

A message that comes while nothing else runs is handled at the device's own thread, where submitting
costs least. Others get a thread each, which goes on with those that wait and then ends: an actor
that handles no message has no thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from isthmus.config import Capacity
from isthmus.device.compute_thread import ComputeThread
from isthmus.errors import Overloaded


class Ticket:
    """A message's place in the queue."""

    def __init__(self, workers: Workers, work: Callable[[], None], *, nested: bool) -> None:
        self._workers = workers
        self.work = work
        self.nested = nested
        """Sent while another message is handled: it takes no one's place."""

    def withdraw(self) -> bool:
        """Leaves the queue; False where the work has begun, or was withdrawn before."""
        return self._workers.remove(self)


class Workers:
    """See the module. One for each runtime."""

    def __init__(self, home: ComputeThread, capacity: Capacity) -> None:
        self._home = home
        self._capacity = capacity
        self._lock = threading.Lock()
        self._queue: deque[Ticket] = deque()
        self._local = threading.local()
        self.n_running = 0
        """Messages that are handled now."""

    @property
    def n_waiting(self) -> int:
        """Messages that wait for a thread."""
        return len(self._queue)

    def submit(self, work: Callable[[], None]) -> Ticket:
        """Has `work`, which must not raise, done as soon as there is room.

        What is sent while another message is handled (a tool that asks an actor) always has room,
        or both would wait for ever. Raises Overloaded where too many wait.
        """
        ticket = Ticket(self, work, nested=getattr(self._local, "busy", False))
        with self._lock:
            first = self.n_running == 0
            if not ticket.nested and self.n_running >= self._capacity.running:
                self._wait_in_line(ticket)
                return ticket
            self.n_running += not ticket.nested
        if not (first and self._home.try_host(lambda: self._work_off(ticket))):
            self._start(ticket)
        return ticket

    def remove(self, ticket: Ticket) -> bool:
        """See `Ticket.withdraw`."""
        with self._lock:
            if ticket not in self._queue:
                return False
            self._queue.remove(ticket)
        return True

    def _wait_in_line(self, ticket: Ticket) -> None:
        """Under the lock."""
        if len(self._queue) >= self._capacity.waiting:
            raise Overloaded(
                f"{self.n_running} messages are being handled and {len(self._queue)} wait, which "
                "is all that may (Capacity.running, Capacity.waiting); try again later"
            )
        self._queue.append(ticket)

    def _start(self, ticket: Ticket) -> None:
        """Handles a message on a thread of its own."""
        thread = threading.Thread(
            target=self._work_off, args=(ticket,), name="isthmus message", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # the system has no thread left
            with self._lock:
                self.n_running -= not ticket.nested
            raise Overloaded(f"a message cannot be handled now: {error}") from None

    def _work_off(self, ticket: Ticket) -> None:
        """Handles a message, then those that wait; home leaves these to others."""
        following: Ticket | None = ticket
        while following is not None:
            self._local.busy = True
            try:
                following.work()
            finally:
                self._local.busy = False
            following = self._next(following)
            if following is not None and self._home.is_current:
                self._start(following)
                return

    def _next(self, ended: Ticket) -> Ticket | None:
        with self._lock:
            if ended.nested:
                return None
            if self._queue:
                return self._queue.popleft()
            self.n_running -= 1
            return None
