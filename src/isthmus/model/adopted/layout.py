"""Where a session of libllama's own graph keeps what in the bytes that its guest handed over.

::

    span (4,096-aligned)
    │ outputs: logits f32 [n_vocab] │ pad │ memory 0 │ pad │ memory 1 │ …
                                          ▲ at `remainder` modulo 4,096, as all memories

A memory is a buffer of libllama's: a KV cache, one for windowed layers, a recurrent state. What is
inside is libllama's business: the bytes mean something to the same version of it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from isthmus.model.own.kv_cache import SPAN_ALIGNMENT
from isthmus.native.placing import Placed
from isthmus.units import align_up


@dataclass(frozen=True)
class AdoptedLayout:
    """Places, in bytes from the beginning of a session's span."""

    n_ctx: int
    n_vocab: int
    outputs_nbytes: int
    memories: tuple[int, ...]
    """Bytes of each memory."""
    remainder: int = 0
    """Where memories begin, modulo 4,096."""

    @property
    def kv_offset(self) -> int:
        """Where the first memory begins."""
        return self.offsets[0]

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each memory begins."""
        found, end = [], self.outputs_nbytes
        for nbytes in self.memories:
            found.append(align_up(end, SPAN_ALIGNMENT) + self.remainder)
            end = found[-1] + nbytes
        return tuple(found)

    @property
    def nbytes(self) -> int:
        """The whole span, a multiple of 4,096."""
        return align_up(self.offsets[-1] + self.memories[-1], SPAN_ALIGNMENT)

    @property
    def kv_nbytes(self) -> int:
        """All memories together."""
        return sum(self.memories)

    @property
    def token_nbytes(self) -> int:
        """What one token takes in the memories, about, if the context is full."""
        return self.kv_nbytes // self.n_ctx

    def record(self) -> dict[str, Any]:
        """What a snapshot says of it, beside what it says of every session."""
        return {
            "n_layer": 0,
            "row_nbytes": 0,
            "outputs_nbytes": self.outputs_nbytes,
            "memories": self.memories,
        }


@dataclass(frozen=True)
class Plan:
    """What each buffer of a context is, in the order in which libllama allocates them.

    It was learned in a context that was thrown away: libllama clears outputs and memories, outputs
    first, and no scratch.
    """

    sizes: tuple[int, ...]
    outputs: int
    """The number of the outputs' buffer."""
    memories: tuple[int, ...]
    """The numbers of the memories' buffers."""
    has_memory: bool

    @staticmethod
    def of(placed: Placed, *, has_memory: bool) -> Plan:
        """What was seen while a context opened."""
        outputs, *memories = sorted(placed.cleared)
        return Plan(tuple(placed.sizes), outputs, tuple(memories), has_memory)

    def layout(self, n_ctx: int, n_vocab: int, remainder: int) -> AdoptedLayout:
        """The layout of a session of such a context."""
        memories = tuple(self.sizes[it] for it in self.memories)
        return AdoptedLayout(n_ctx, n_vocab, self.sizes[self.outputs], memories, remainder)

    @property
    def scratch(self) -> tuple[int, ...]:
        """The numbers of the buffers that hold nothing between two passes."""
        kept = {self.outputs, *self.memories}
        return tuple(it for it in range(len(self.sizes)) if it not in kept)

    def alike(self, other: Plan) -> tuple[int, ...]:
        """Which of the memories, from 0 on, have the same size in both."""
        sizes: Sequence[tuple[int, int]] = [
            (self.sizes[a], other.sizes[b])
            for a, b in zip(self.memories, other.memories, strict=True)
        ]
        return tuple(i for i, (mine, others) in enumerate(sizes) if mine == others)
