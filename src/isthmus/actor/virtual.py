"""Time and chance as an actor sees them: repeatable, and part of its state."""

from __future__ import annotations

import hashlib

_TICK_NS = 1_000
_LATEST_NS = 2**63 - 2**60
"""The year 2225: a clock that is moved to a later time stays here, so that it has room to tick."""


class VirtualClock:
    """Nanoseconds since 1970-01-01 00:00 UTC, moved by readings, 1,000 ns each, and by sleeps."""

    def __init__(self, now_ns: int) -> None:
        self.now_ns = now_ns

    def read(self) -> int:
        """The time; the next reading is later."""
        self.now_ns += _TICK_NS
        return self.now_ns

    def move_to(self, ns: int) -> None:
        """Has a guest sleep until then, which takes no time; it never goes back."""
        self.now_ns = max(self.now_ns, min(ns, _LATEST_NS))


class SeededRandom:
    """Random bytes that depend on the seed and on how many blocks were drawn before.

    BLAKE2b of a counter, keyed with the seed: state is two numbers, and no guest can run it back.
    """

    _BLOCK_NBYTES = 64

    def __init__(self, seed: int, n_blocks: int = 0) -> None:
        self.seed = seed
        self.n_blocks = n_blocks
        self._key = hashlib.blake2b(str(seed).encode(), digest_size=32).digest()

    def draw(self, nbytes: int) -> bytes:
        """The next `nbytes`; what is left of the last block is thrown away."""
        blocks = []
        for _ in range(-(-nbytes // self._BLOCK_NBYTES)):
            counter = self.n_blocks.to_bytes(16, "little")
            blocks.append(hashlib.blake2b(counter, key=self._key).digest())
            self.n_blocks += 1
        return b"".join(blocks)[:nbytes]
