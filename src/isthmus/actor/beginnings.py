"""Bodies of actors that are being made now: how long that may take, and how all of them are ended.

A body may take long to make. A fresh guest runs its start function and `_initialize`, which may
call any host function; a restored one may have its tokens prefilled again, and runs `on_replay`.
No caller can stop that by leaving, so each has a deadline, and `cut_off` ends all of them.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Protocol

from isthmus.config import Capacity, Limits
from isthmus.errors import ActorClosed

_AGAIN_S = 0.02
"""Seconds until a body is cut off again: it may have begun to wait for something since."""


class Beginning(Protocol):
    """A body that is being made."""

    def cut_off(self) -> None:
        """Has the guest and whatever is computed for it end soon; from any thread."""


class Beginnings:
    """See the module. One for each runtime; safe to use from several threads."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self._changed = threading.Condition()
        self._under_way: list[Beginning] = []
        self._closed = False

    def allowed(self, limits: Limits, *, replays: bool) -> tuple[float, str]:
        """Seconds in which a body that is begun now must be made, and the setting that says so."""
        name = "replay_s" if replays else "initialize_s"
        allowed_s = getattr(self._capacity, name)
        if limits.deadline_s is not None and limits.deadline_s < allowed_s:
            return limits.deadline_s, "deadline_s"
        return allowed_s, f"Capacity.{name}"

    @contextlib.contextmanager
    def taking(self, beginning: Beginning) -> Iterator[None]:
        """While open, the body counts as being made. ActorClosed after `close`."""
        with self._changed:
            if self._closed:
                raise ActorClosed("the runtime is closed")
            self._under_way.append(beginning)
        try:
            yield
        finally:
            with self._changed:
                self._under_way.remove(beginning)
                self._changed.notify_all()

    def cut_off(self) -> None:
        """Cuts off whatever is being made now, and waits for its end."""
        with self._changed:
            while self._under_way:
                for beginning in self._under_way:
                    beginning.cut_off()
                self._changed.wait(_AGAIN_S)

    def close(self) -> None:
        """Lets nothing begin any more, and cuts off what is being made."""
        with self._changed:
            self._closed = True
        self.cut_off()
