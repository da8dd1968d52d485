"""A model's file in the server's memory, or not: its state, who uses it, how long it stays.

========  ==================================================================================
state     what holds
========  ==================================================================================
unloaded  nothing is in memory; `error` says why the last load failed, if it did
loading   a thread opens the file; those who want it wait
loaded    `served` has its models; requests and what works for them are counted in `n_users`
leaving   nobody uses it; a thread closes its agents and then its models
========  ==================================================================================
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

from isthmus.errors import IsthmusError
from isthmus.file_hash import files_identity
from isthmus.model import Model
from isthmus.server.models.card import Card
from isthmus.server.models.catalog import Source
from isthmus.shards import model_files

_Part = TypeVar("_Part")


class State(Enum):
    """See the module."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    LOADED = "loaded"
    LEAVING = "leaving"


class Served:
    """A model in memory, under one of its names. It is there for as long as somebody uses it."""

    def __init__(self, name: str, model: Model, n_ctx: int) -> None:
        self.name = name
        self.model = model
        self.n_ctx = n_ctx
        """Tokens of context of those agents that say nothing else."""
        self._parts: dict[type, Any] = {}

    def find(self, kind: type[_Part]) -> _Part | None:
        """What was kept for this model, while it is loaded."""
        return self._parts.get(kind)

    def keep(self, part: _Part) -> _Part:
        """Keeps one thing of a kind until the model leaves; the first one, if there are two."""
        kept: _Part = self._parts.setdefault(type(part), part)
        return kept


class Resident:
    """See the module. Used by one event loop. `idle` is called when its last user has gone."""

    def __init__(self, source: Source, idle: Callable[[Resident], None]) -> None:
        self.source = source
        self._idle = idle
        self.card: Card | None = None
        """What the file says; None before somebody asked."""
        self.state = State.UNLOADED
        self.error: str | None = None
        self._refused = ("", 0.0)
        """Which file could not be read, and until when it is not tried again."""
        self.served: dict[str, Served] = {}
        self.nbytes = 0
        """Bytes of weights, its projector's too: as the card says, or as they are once loaded."""
        self.n_ctx = 0
        """Tokens of context of its agents, where nobody says otherwise; 0 before it was read."""
        self.load_s = 0.0
        """Seconds that the last load took."""
        self.keep_alive_s = 0.0
        """Seconds for which it stays after its last use; FOREVER if it leaves only for another one,
        0 if it leaves at once."""
        self.n_users = 0
        self.used = 0.0
        """When its last use ended, on the clock of time.monotonic."""
        self.stuck_until = 0.0
        """When it may be closed again, after it could not be."""

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.source.name

    @property
    def is_unused(self) -> bool:
        """Whether it could leave now."""
        able = self.state is State.LOADED and not self.n_users
        return able and time.monotonic() >= self.stuck_until

    @property
    def expires(self) -> float | None:
        """When it leaves unless it is used, on the clock of time.monotonic; None for never, and if
        it leaves with its last user."""
        if self.state is not State.LOADED or self.keep_alive_s <= 0:
            return None
        return (time.monotonic() if self.n_users else self.used) + self.keep_alive_s

    def refuse(self, until: float) -> None:
        """Has the file that is there now not be read again, until then or until it has changed."""
        self._refused = (self._identity(), until)

    @property
    def is_refused(self) -> bool:
        """Whether the file that is there could not be read, and is not to be tried again yet."""
        identity, until = self._refused
        return time.monotonic() < until and self._identity() == identity

    def _identity(self) -> str:
        try:
            return files_identity(model_files(self.source.path))
        except (OSError, IsthmusError):
            return ""

    @property
    def model(self) -> Model:
        """The model without adapters, whose weights all others have."""
        first = next(iter(self.served.values())).model
        return first.base or first

    def take(self) -> None:
        """Counts one more user. It must be given back."""
        self.n_users += 1

    def give_back(self) -> None:
        """Ends one use."""
        self.n_users -= 1
        if not self.n_users:
            self.used = time.monotonic()
            self._idle(self)
