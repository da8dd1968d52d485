"""Isthmus: WebAssembly agents and a compute device on the same bytes.

See `Runtime`. Every exception is in `isthmus.errors`, every setting in `isthmus.config`.
"""

from isthmus.actor import Actor, Reply, Restoration, Stream, Usage
from isthmus.config import Capacity, Limits
from isthmus.counters import Counters
from isthmus.errors import IsthmusError
from isthmus.model import Adapter, Model, SamplerSettings
from isthmus.runtime import Runtime
from isthmus.snapshot import Saved, Store
from isthmus.sources import bundled_guests
from isthmus.wasm import Guest

__version__ = "0.1.0"

__all__ = [
    "Actor",
    "Adapter",
    "Capacity",
    "Counters",
    "Guest",
    "IsthmusError",
    "Limits",
    "Model",
    "Reply",
    "Restoration",
    "Runtime",
    "SamplerSettings",
    "Saved",
    "Store",
    "Stream",
    "Usage",
    "__version__",
    "bundled_guests",
]
