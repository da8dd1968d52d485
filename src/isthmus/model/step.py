"""What one session appends in a pass: a chunk of its prompt, or a step of decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isthmus.model.session import Session
from isthmus.model.spans import Embeddings
from isthmus.units import HostAddr

_FLOAT = 4
"""Bytes of a logit."""


@dataclass(frozen=True)
class Chunk:
    """Tokens that one session appends in a pass of prefill; each sees those before it."""

    session: Session
    tokens: npt.NDArray[np.int32]
    last: bool
    """Whether the prompt ends with it; the session then has the logits after its last token."""
    embeddings: Embeddings | None = None
    """What is computed in place of tokens, all of which are `spans.NO_TOKEN`."""

    def append(self) -> None:
        """Has the session hold its tokens, once they are computed."""
        self.session.extend(self.tokens.tolist(), self.embeddings)
        self.session.has_logits |= self.last


@dataclass(slots=True)
class Step:
    """Tokens that one session appends in a pass, at least one; each sees those before it.

    Not frozen, since that takes three times as long to make, and a step is made for each token.
    """

    session: Session
    tokens: Sequence[int]
    logits: int = 0
    """The host address for logits after each token but the last, f32 [n_tokens - 1, n_vocab], in
    the guest's memory. Those after the last one go to the session's."""

    def positions(self) -> range:
        """Where its tokens will be in the session."""
        n_tokens = len(self.session.tokens)
        return range(n_tokens, n_tokens + len(self.tokens))

    def places(self) -> list[HostAddr]:
        """Where the logits after each token go."""
        session, n = self.session, len(self.tokens)
        if n == 1:
            return [session.base]
        width = _FLOAT * session.layout.n_vocab
        return [*(HostAddr(self.logits + width * i) for i in range(n - 1)), session.base]
