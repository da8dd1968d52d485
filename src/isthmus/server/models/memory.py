"""How much memory models may have together, and how long a context is where nobody says.

Weights that lie in the host's memory are pages of files, which the system may drop: they cost the
other models and the agents their speed before they cost anybody anything else. So the bound is one
of good manners, and a model that is alone may be larger than it, unless somebody has set it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from isthmus.errors import Overloaded
from isthmus.machine import default_memory_nbytes
from isthmus.runtime import Runtime
from isthmus.server.models.card import Card
from isthmus.server.models.resident import Resident, State
from isthmus.server.settings import ServerSettings
from isthmus.units import MAX_NBYTES_32, format_nbytes

_USUAL_N_CTX = 4096
"""Tokens of context that a model trained for them has, however little memory there is."""


class ModelMemory:
    """See the module: `limit_nbytes` of weights."""

    def __init__(self, runtime: Runtime, settings: ServerSettings, *, repacks: bool) -> None:
        """`repacks`: whether weights are copied once more when they are loaded."""
        self._given = settings.models_nbytes
        self._repacks = repacks
        if self._given is not None:
            self.limit_nbytes = self._given
        else:
            self.limit_nbytes = _usual_nbytes(runtime, settings)

    def expected_nbytes(self, resident: Resident) -> int:
        """Bytes that a model has or will have."""
        if resident.state is State.LOADED or resident.card is None:
            return resident.nbytes
        card = resident.card
        return card.nbytes * (2 if self._repacks else 1) + card.projector_nbytes

    def fits(
        self, resident: Resident, others: Iterable[Resident], *, once_left: bool = False
    ) -> bool:
        """Whether a model may be loaded beside all others that are in memory; with `once_left`
        those that leave count as gone."""
        gone = (State.UNLOADED, State.LEAVING) if once_left else (State.UNLOADED,)
        inside = [it for it in others if it is not resident and it.state not in gone]
        if not inside and self._given is None:
            return True
        nbytes = sum(self.expected_nbytes(it) for it in inside)
        return nbytes + self.expected_nbytes(resident) <= self.limit_nbytes

    def require_possible(self, residents: Sequence[Resident]) -> None:
        """Overloaded if models could not be in memory together, though no other were."""
        nbytes = sum(self.expected_nbytes(it) for it in residents)
        alone = len(residents) == 1 and self._given is None
        if nbytes > self.limit_nbytes and not alone:
            names = ", ".join(it.name for it in residents)
            raise Overloaded(
                f"{names}: {format_nbytes(nbytes)} of weights, and models may have "
                f"{format_nbytes(self.limit_nbytes)} (models_nbytes)"
            )


def default_n_ctx(card: Card, most_nbytes: int) -> int:
    """Tokens of context of a model's agents, if nobody says.

    It is the context that the model was trained for, halved until one agent's memory is neither
    more than `most_nbytes` nor more than a 32-bit memory can have; but not below 4,096.
    """
    n_ctx = card.hparams.n_ctx_train
    most_nbytes = min(most_nbytes, MAX_NBYTES_32)
    while n_ctx > _USUAL_N_CTX and card.agent_nbytes(n_ctx) > most_nbytes:
        n_ctx = max(n_ctx // 2, _USUAL_N_CTX)
    return n_ctx


def stateless_nbytes(runtime: Runtime) -> int:
    """Memory that the agents of stateless requests may have together.

    It is half of what all agents may have. A device that has KV caches in memory of its own has to
    have room for them beside weights, which may take three quarters of that.
    """
    half, info = runtime.memory_limit_nbytes // 2, runtime.device.info
    return min(half, info.memory_nbytes // 4) if info.caches == "own" else half


def _usual_nbytes(runtime: Runtime, settings: ServerSettings) -> int:
    """Three quarters of the memory that there is for weights: agents keep a quarter in any case."""
    info = runtime.device.info
    if info.name not in ("cpu", "null"):
        return info.memory_nbytes * 3 // 4
    if settings.memory_nbytes is None:
        return runtime.memory_limit_nbytes * 3 // 4
    left = default_memory_nbytes()
    return max(left - settings.memory_nbytes, left // 4)
