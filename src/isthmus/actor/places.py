"""Places for messages: how many run at the same time, and who waits for one."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from isthmus.actor.message import Message
from isthmus.config import Capacity
from isthmus.errors import Overloaded


class Places:
    """See the module. Any thread may call `enter` and `leave`; all else is for the loop's."""

    def __init__(self, capacity: Capacity, refused: Callable[[str], None]) -> None:
        """`refused` is called with the reason when a message is refused."""
        self._capacity = capacity
        self._refused = refused
        self._lock = threading.Lock()
        """Held while one of the two numbers changes: senders change them as well."""
        self.n_running = 0
        """Messages that have a place: they run or wait for the device, and are not in a tool."""
        self.n_waiting = 0
        """Messages that wait for a place."""
        self._line: deque[Message] = deque()
        self.fresh: deque[Message] = deque()
        """Messages that have got their place, and are to be begun."""

    def enter(self, message: Message) -> None:
        """Gives a message a place, or has it wait for one; Overloaded if too many do."""
        with self._lock:
            if self.n_running < self._capacity.running:
                self.n_running += 1
                message.is_counted = message.has_place = True
            elif self.n_waiting < self._capacity.waiting:
                self.n_waiting += 1
                message.is_counted = True
            else:
                self._refused("waiting")
                raise Overloaded(
                    f"{self.n_running} messages are being handled and {self.n_waiting} wait, which "
                    "is all that may (Capacity.running, Capacity.waiting); try again later"
                )

    def leave(self, message: Message) -> None:
        """Counts a message no longer that has entered and could not be handed over."""
        with self._lock:
            if message.is_counted:
                self.n_running -= message.has_place
                self.n_waiting -= not message.has_place
                message.is_counted = message.has_place = False

    def receive(self, message: Message) -> None:
        """Takes a message that has entered."""
        if message.has_place:
            self.fresh.append(message)
            return
        self._line.append(message)
        self.take_again()  # whoever had a place may have ended since it entered
        self.give_up()

    def give_up(self) -> None:
        """Frees a place. The first in the line gets it, unless more are taken than there are."""
        with self._lock:
            if not self._line or self.n_running > self._capacity.running:
                self.n_running -= 1
                return
            self.n_waiting -= 1
        message = self._line.popleft()
        message.has_place = True
        self.fresh.append(message)

    def take_again(self) -> None:
        """Takes a place for a message that comes back from a tool, even if all are taken."""
        with self._lock:
            self.n_running += 1

    def withdraw(self, message: Message) -> None:
        """Takes a message out of the line, if it is there."""
        if message in self._line:
            self._line.remove(message)
            with self._lock:
                self.n_waiting -= 1
