"""Which build of a bundled guest a context needs: 32-bit, or 64-bit where its KV cache is larger.

A 32-bit memory needs no bounds checks and is the rule; a 64-bit one pays for each access. So the
32-bit build is taken wherever a session of the wanted length fits into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from isthmus.config import Limits
from isthmus.errors import SettingsError
from isthmus.model import Model
from isthmus.runtime.sources import bundled_guests
from isthmus.units import MAX_NBYTES_32, MIB, WASM_PAGE, align_up

_HEAP_NBYTES = 64 * MIB
"""What a guest may need beside its session: token ids, texts, a message."""
_USUAL_N_CTX = 2048
"""Of guests that are not told one (agent.h)."""


def needed_nbytes(model: Model, n_ctx: int) -> int:
    """Linear memory of a guest that holds one session of `n_ctx` tokens."""
    n_ctx = max(1, min(n_ctx, model.hparams.n_ctx_train))
    return align_up(model.layout(n_ctx).nbytes + _HEAP_NBYTES, WASM_PAGE)


def n_ctx_of(args: Sequence[str], model: Model) -> int:
    """The context that options for a guest, `key=value`, ask for."""
    given = [text.removeprefix("n_ctx=") for text in args if text.startswith("n_ctx=")]
    if given and given[-1].isdecimal():
        return int(given[-1])
    return min(_USUAL_N_CTX, model.hparams.n_ctx_train)


def fitting_guest(
    guest: str, model: Model, n_ctx: int, limits: Limits, memory64: bool | None = None
) -> tuple[str, Limits]:
    """The build of a bundled guest whose memory holds a session of `n_ctx` tokens, and its limits.

    With `memory64` it is that one or the other, whatever fits. A memory limit of one's own stays;
    the usual one grows to what the session needs. SettingsError where there is no 64-bit build.
    """
    if not model.generates:
        return guest, limits
    nbytes = needed_nbytes(model, n_ctx)
    wide = guest if guest.endswith("64") else f"{guest}64"
    if wide not in bundled_guests():
        if memory64 and guest in bundled_guests():
            raise SettingsError(f"{guest} has no 64-bit build: chat, complete and bench have one")
        return guest, limits
    is_wide = guest == wide or (nbytes > MAX_NBYTES_32 if memory64 is None else memory64)
    if not is_wide:
        return guest, limits
    if limits.memory_nbytes == Limits.memory_nbytes:
        limits = replace(limits, memory_nbytes=max(nbytes, limits.memory_nbytes))
    return wide, limits
