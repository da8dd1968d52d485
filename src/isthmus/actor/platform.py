"""What all actors of one runtime run on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from isthmus.actor.beginnings import Beginnings
from isthmus.actor.budget import Budget
from isthmus.actor.loop import Loop
from isthmus.actor.snapshot import device_record
from isthmus.device.base import Backend, Device
from isthmus.file_hash import FileHashes
from isthmus.metrics import Metrics
from isthmus.snapshot.records import DeviceRecord
from isthmus.wasm.engines import Engines


@dataclass(frozen=True)
class Platform:
    """See the module."""

    engines: Engines
    device: Device
    backend: Backend
    """What computes the graphs of guests' `compute` calls."""
    loop: Loop
    budget: Budget
    metrics: Metrics
    eviction_path: Callable[[], Path]
    """A new file for each actor that is evicted."""
    adopt: Callable[[object], None]
    """Hands each new actor to the runtime, which will close it. ActorClosed if it is closed."""
    beginnings: Beginnings
    hashes: FileHashes = field(default_factory=FileHashes)
    version: str = ""
    """The version of Isthmus, which snapshots record."""
    snapshot_key: bytes | None = field(default=None, repr=False)
    """The key that snapshots are signed with."""

    @cached_property
    def device_record(self) -> DeviceRecord:
        """What computes here, as a manifest says it."""
        return device_record(self.device, self.hashes)
