"""What a runtime owns: closed with it, or, if nobody holds the runtime any more, without it.

Nothing here refers to the Runtime. So a Runtime that is dropped is collected though threads still
refer to its device, and `closed_if_dropped` has closed what it owned.
"""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from isthmus.actor import Platform
from isthmus.counters import Counters
from isthmus.errors import ActorClosed
from isthmus.metrics import Metrics
from isthmus.runtime.open_models import OpenModels
from isthmus.runtime.roster import Roster

_DROPPED = (
    "a Runtime was dropped without close(), so its models and actors are closed now: "
    "keep it while you use them, and open it by `with isthmus.Runtime() as rt:`"
)


@dataclass(eq=False)
class Holdings:
    """See the module. `stack` closes device, engines and models; actors go before."""

    platform: Platform
    roster: Roster
    models: OpenModels
    stack: ExitStack
    is_closed: bool = False
    _pid: int = field(default_factory=os.getpid)

    def require_open(self) -> None:
        """ActorClosed after `close`."""
        if self.is_closed:
            raise ActorClosed("the runtime is closed")

    def close(self) -> None:
        """Closes actors, models, engine and device, in this order; a second call does nothing, nor
        does one in a forked process, where everything is its parent's."""
        if os.getpid() != self._pid:
            return
        self.platform.beginnings.close()
        self.is_closed = True
        self.roster.close()
        self.stack.close()

    def closed_if_dropped(self, owner: object) -> None:
        """Has all be closed once `owner` is collected; what is open at exit is the system's."""
        weakref.finalize(owner, self._dropped).atexit = False

    def _dropped(self) -> None:
        """Closes in a thread of its own: the collector runs on any, the device's too."""
        if not self.is_closed and os.getpid() == self._pid:
            warnings.warn(_DROPPED, ResourceWarning, stacklevel=2)
            threading.Thread(target=self.close, name="isthmus-closing", daemon=True).start()

    def counters(self) -> Counters:
        """Counts of the device, of all models and of all actors, added up."""
        parts = [*self.roster.counters(), *self.models.counters()]
        return Counters.total([self.platform.device.counters, *parts])

    def publish(self, metrics: Metrics) -> None:
        """Adds what is kept here to the metrics."""
        budget, places = self.platform.budget, self.platform.loop.places
        for state in ("idle", "running", "held", "evicted"):
            count = partial(self.roster.n_in, state)
            metrics.gauge(f"actors_{state}", f"Actors that are {state} now", count)
        gauges = (
            (
                "memory_bytes",
                "Linear memory of all actors, as they have grown it, images of it and output",
                partial(getattr, budget, "used_nbytes"),
            ),
            (
                "memory_limit_bytes",
                "What all actors may have of that together",
                partial(getattr, budget, "limit_nbytes"),
            ),
            (
                "models_loaded",
                "Models that are open, those with adapters too",
                self.models.__len__,
            ),
            ("models_bytes", "Bytes of the weights of all open models", self.models.nbytes),
            (
                "messages_waiting",
                "Messages that wait for a place",
                partial(getattr, places, "n_waiting"),
            ),
        )
        for name, text, read in gauges:
            metrics.gauge(name, text, read)
        metrics.counts(lambda: self.counters().snapshot())
