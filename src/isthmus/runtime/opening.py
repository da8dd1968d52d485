"""The parts of a runtime, opened in the order in which they need each other."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from isthmus.actor import Platform
from isthmus.actor.beginnings import Beginnings
from isthmus.actor.budget import Budget
from isthmus.actor.eviction import EvictionFolder
from isthmus.actor.loop import Loop
from isthmus.config import Capacity, DeviceSettings
from isthmus.device import open_device
from isthmus.file_hash import FileHashes
from isthmus.machine import default_memory_nbytes
from isthmus.metrics import Metrics
from isthmus.native.loader import Library
from isthmus.runtime.holdings import Holdings
from isthmus.runtime.open_models import OpenModels
from isthmus.runtime.roster import Roster
from isthmus.version import VERSION
from isthmus.wasm.engines import Engines


@dataclass(frozen=True)
class Parts:
    """What a runtime is opened with."""

    device: str
    """Its name, such as `cuda:0`."""
    device_settings: DeviceSettings
    library: Library
    cache: Path
    """The folder for compiled guests, hashes of files and evicted agents."""
    capacity: Capacity
    snapshot_key: bytes | None


def opened(parts: Parts, metrics: Metrics) -> Holdings:
    """Device, engine and all that actors live on. Whatever was opened is closed again on an error.

    Raises DeviceUnavailable, SettingsError.
    """
    capacity, roster = parts.capacity, Roster()
    evicted = EvictionFolder(capacity.folder or parts.cache / "evicted")
    with ExitStack() as stack:
        device = open_device(parts.device, parts.library, parts.device_settings)
        stack.callback(device.close)
        if device.caches is not None:
            device.caches.make_room = roster.evict
        engines = Engines(parts.cache / "guests", guard_pages=device.guard_pages)
        stack.callback(engines.close)
        loop = Loop(device.compute_thread, capacity, metrics, metrics.refuse)
        models = OpenModels(loop.forget)
        platform = Platform(
            engines,
            device,
            stack.enter_context(device.new_backend()),
            loop=loop,
            budget=_budget(capacity, models, roster, metrics),
            metrics=metrics,
            eviction_path=evicted.new_path,
            adopt=roster.adopt,
            beginnings=Beginnings(capacity),
            hashes=FileHashes(parts.cache / "hashes"),
            version=VERSION,
            snapshot_key=parts.snapshot_key,
        )
        stack.callback(evicted.close)
        stack.callback(models.close)
        return Holdings(platform, roster, models, stack.pop_all())


def _budget(capacity: Capacity, models: OpenModels, roster: Roster, metrics: Metrics) -> Budget:
    """What actors may have: as somebody said, or what there is, and weights come first then."""
    given = capacity.memory_nbytes
    if given is not None:
        return Budget(given, lambda: 0, roster.evict, metrics.refuse)
    return Budget(default_memory_nbytes(), models.host_nbytes, roster.evict, metrics.refuse)
