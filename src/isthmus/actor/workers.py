"""The threads that handle messages: so many at a time, and so many messages that wait.

A message that comes while nothing else runs is handled at the device's own thread, where submitting
costs least. Others get a thread each, which goes on with those that wait and then ends: an actor
that handles no message has no thread.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator

from isthmus.config import Capacity
from isthmus.device.compute_thread import ComputeThread
from isthmus.errors import Overloaded


class Ticket:
    """A message's place in the queue."""

    def __init__(self, workers: Workers, work: Callable[[], None]) -> None:
        self._workers = workers
        self.work = work

    def withdraw(self) -> bool:
        """Leaves the queue; False where the work has begun, or was withdrawn before."""
        return self._workers.remove(self)


class Workers:
    """See the module. One for each runtime."""

    def __init__(
        self, home: ComputeThread, capacity: Capacity, refused: Callable[[str], None]
    ) -> None:
        """`refused` is told why a message was."""
        self._home = home
        self._refused = refused
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

    def submit(self, work: Callable[[], None], *, hosted: bool) -> Ticket:
        """Has `work`, which must not raise, done as soon as there is room; if `hosted`, at the
        device's thread where that is free. A stranger's guest might never leave it.

        Raises Overloaded where too many wait, DeviceFailed in a forked process.
        """
        self._home.require_own_process()
        ticket = Ticket(self, work)
        with self._lock:
            first = hosted and self.n_running == 0
            if self.n_running >= self._capacity.running:
                self._wait_in_line(ticket)
                return ticket
            self.n_running += 1
        try:
            if not (first and self._home.try_host(lambda: self._work_off(ticket))):
                self._start(ticket)
        except BaseException as error:
            with self._lock:
                self.n_running -= 1
            if isinstance(error, Overloaded):
                self._refused("threads")
            raise
        return ticket

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """While open, the message handled here takes nobody's place: it waits for the world.

        A tool may then ask other actors, from any thread, though all places were taken.
        """
        if not getattr(self._local, "busy", False):
            yield
            return
        with self._lock:
            following = self._pop_or_leave()
        if following is not None:
            self._start_or_requeue(following)
        try:
            yield
        finally:
            with self._lock:
                self.n_running += 1

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
            self._refused("waiting")
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
            raise Overloaded(f"a message cannot be handled now: {error}") from None

    def _start_or_requeue(self, ticket: Ticket) -> bool:
        """Starts a thread for it; where there is none, it goes back to the head of the line."""
        try:
            self._start(ticket)
        except Overloaded:
            with self._lock:
                self.n_running -= 1
                self._queue.appendleft(ticket)
            return False
        return True

    def _work_off(self, ticket: Ticket) -> None:
        """Handles a message, then those that wait; home leaves these to others."""
        following: Ticket | None = ticket
        while following is not None:
            self._local.busy = True
            try:
                following.work()
            finally:
                self._local.busy = False
            with self._lock:
                following = self._pop_or_leave()
            if following is None or not self._home.is_current:
                continue
            try:
                self._start(following)
            except Overloaded:
                continue  # no thread to be had: home goes on with it
            return

    def _pop_or_leave(self) -> Ticket | None:
        """The next in line, who takes this place; or the place is given up. Under the lock."""
        if self._queue and self.n_running <= self._capacity.running:
            return self._queue.popleft()
        self.n_running -= 1
        return None
