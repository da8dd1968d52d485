"""The `granitemoe` architecture: `granite` with experts."""

from __future__ import annotations

from isthmus.model.architectures.granite import load
from isthmus.model.shape.family import Family
from isthmus.model.shape.hparams import RopeKind

FAMILY = Family(
    models="Granite 3 with experts (1B-A400M, 3B-A800M)",
    features="as `granite`, with experts",
    rope=RopeKind.NORMAL,
)

__all__ = ["FAMILY", "load"]
