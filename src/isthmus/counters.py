"""Counts that turn claims into numbers.

"Zero copy" is `bytes_copied == 0`; a test asserts it. Each owner (a device, an actor) has one
`Counters` and is the only one to write it, so no lock is needed; `total` adds them up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass
class Counters:
    """Monotonic counts; differences between two `snapshot`s measure a piece of work."""

    bytes_copied: int = 0
    """Tensor bytes moved between a guest's linear memory, or a file of it, and memory of a device,
    either way, and those of KV caches that a device copied in its own memory."""
    bytes_restored: int = 0
    """Bytes of snapshots and forks that were copied into memory, because they were not mapped."""
    bytes_control: int = 0
    """Token ids, descriptors, names and text that the host read from guests before using them."""
    host_calls: int = 0
    """Calls from guests into host functions."""
    host_ns: int = 0
    """Nanoseconds inside host functions that drive a model, kernels included."""
    kernel_ns: int = 0
    """Nanoseconds inside submissions to the device."""
    submissions: int = 0
    """Graphs that a device computed."""
    graphs_built: int = 0
    """Graphs that were built; all others were reused."""
    tokens_prefilled: int = 0
    """Tokens appended by prefill."""
    tokens_decoded: int = 0
    """Tokens appended by decode."""
    faults: int = 0
    """Host calls that were refused with an errno."""

    def snapshot(self) -> dict[str, int]:
        """The counts now, by name."""
        return asdict(self)

    @staticmethod
    def total(parts: Iterable[Counters]) -> Counters:
        """The sum of several owners' counts."""
        whole = Counters()
        for part in parts:
            for name, value in part.snapshot().items():
                setattr(whole, name, getattr(whole, name) + value)
        return whole
