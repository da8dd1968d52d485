"""What every session's layout says, however its model is computed."""

from __future__ import annotations

from typing import Any, Protocol


class Layout(Protocol):
    """Places, in bytes from the beginning of a session's span; logits lie at its beginning."""

    @property
    def n_ctx(self) -> int:
        """Tokens that fit."""

    @property
    def n_vocab(self) -> int:
        """Length of the logits."""

    @property
    def kv_offset(self) -> int:
        """Where what the session keeps of its tokens begins."""

    @property
    def nbytes(self) -> int:
        """The whole span, a multiple of 4,096."""

    @property
    def kv_nbytes(self) -> int:
        """What the session keeps of its tokens: KV cache, recurrent state."""

    @property
    def token_nbytes(self) -> int:
        """What one token takes of that."""

    def record(self) -> dict[str, Any]:
        """What a snapshot says of it beside the names above."""
