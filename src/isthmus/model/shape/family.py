"""What the files of one architecture have in common, and say nothing of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from isthmus.model.shape.hparams import Heads, RopeKind, State
from isthmus.model.shape.metadata import Metadata


@dataclass(frozen=True)
class Family:
    """What the files of one architecture have in common, and say nothing of.

    docs/models.md is written from it.
    """

    models: str
    """Those that call themselves so."""
    features: str
    """What is particular, in the field's words."""
    rope: RopeKind
    partial_rotary: bool = False
    """Whether only a part of each head may be rotated."""
    window_period: int = 0
    """Every so many layers one sees all tokens, the others a window; 0: there is no window."""
    window_default: int = 0
    """Tokens in the window where the file does not say; 0: then there is none."""
    window_everywhere: bool = False
    """Whether all layers that attend have a window, if a file says how many tokens it has."""
    encoder: bool = False
    """Whether each token sees all others: such models make embeddings, and no text."""
    heads: Callable[[Metadata], tuple[Heads, ...]] | None = None
    """Reads the heads of each layer; None: they are the same in all, as most have them."""
    states: Callable[[Metadata], tuple[State, ...]] | None = None
    """Reads what layers without attention keep; None: all layers attend."""
    networks: Callable[[Metadata], tuple[int, ...]] | None = None
    """Reads which layers are only a feed-forward network; None: there are none."""
