"""An actor's life: its states, and who may do what in each of them.

=========  =======================================================================================
state      what holds
=========  =======================================================================================
idle       nothing of it is on any stack: it can be frozen, forked, saved and evicted
running    one message waits to be handled or is being handled; nothing else may touch its body
held       somebody looks at its body, forks or saves it; no message can begin
evicting   its body is on its way to a file; whoever wants the actor waits, and hears nothing of it
evicted    its body is a file, which the next message, or look at it, brings back
closed     its memory is given back, or will be as soon as nothing runs or looks any more
=========  =======================================================================================
"""

from __future__ import annotations

import threading
from enum import Enum

from isthmus.errors import ActorBusy, ActorClosed


class State(Enum):
    """See the module."""

    IDLE = "idle"
    RUNNING = "running"
    HELD = "held"
    EVICTING = "evicting"
    EVICTED = "evicted"
    CLOSED = "closed"


_FREE = (State.IDLE, State.EVICTED)
TRANSITIONS: dict[State, frozenset[State]] = {
    State.IDLE: frozenset({State.RUNNING, State.HELD, State.EVICTING}),
    State.EVICTED: frozenset({State.RUNNING, State.HELD, State.EVICTING}),
    State.RUNNING: frozenset(_FREE),
    State.HELD: frozenset(_FREE),
    State.EVICTING: frozenset(_FREE),
    State.CLOSED: frozenset(),
}
"""What may follow each state. `close` may come at any time, and takes effect once it is free."""


class Life:
    """The state of one actor. Safe to use from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._state = State.IDLE
        self.closed_because: str | None = None
        """Why it is closed, or about to be."""

    @property
    def state(self) -> State:
        """The state now."""
        return self._state if self.closed_because is None else State.CLOSED

    def take(self, state: State, *, waits: bool = True) -> None:
        """Begins to run it, or to look at it. Waits while it is on its way to a file.

        ActorClosed; ActorBusy if something runs or looks already, or if it would wait and may not.
        """
        with self._changed:
            while waits and self._state is State.EVICTING:
                self._changed.wait()
            self._require_open()
            if state not in TRANSITIONS[self._state]:
                raise ActorBusy("the actor is handling another message; it takes one at a time")
            self._state = state

    def try_take(self, state: State) -> bool:
        """As `take`, without waiting; False if it cannot be."""
        with self._changed:
            if self.closed_because is not None or state not in TRANSITIONS[self._state]:
                return False
            self._state = state
            return True

    def take_last(self, timeout_s: float) -> bool:
        """Takes it to close it, once nothing runs or looks; False if that is not so in time."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._state in _FREE, timeout_s):
                return False
            self._state = State.HELD
            return True

    def leave(self, *, evicted: bool) -> None:
        """Ends what `take` began; `evicted` says whether its body is a file."""
        with self._changed:
            after = State.EVICTED if evicted else State.IDLE
            assert after in TRANSITIONS[self._state], f"{self._state} cannot end"
            self._state = after
            self._changed.notify_all()

    def end(self, why: str) -> None:
        """Notes that it is closed, and why; the first reason counts."""
        with self._changed:
            self.closed_because = self.closed_because or why

    def _require_open(self) -> None:
        if self.closed_because is not None:
            raise ActorClosed(f"the actor is closed: {self.closed_because}")
