"""Isthmus: WebAssembly agents and a compute device on the same bytes.

See `Runtime`. Every exception is in `isthmus.errors`, every setting in `isthmus.config`.
"""

import logging

from isthmus import config as config
from isthmus import errors as errors
from isthmus.actor import Actor, AsyncStream, Reply, Restoration, Stream, Usage
from isthmus.config import Capacity, Limits
from isthmus.counters import Counters
from isthmus.errors import IsthmusError
from isthmus.mapping import Job, Mapped, Mapper
from isthmus.mapping import map_inputs as map  # noqa: A004 - as isthmus.map
from isthmus.model import Adapter, Model, SamplerSettings
from isthmus.runtime import Runtime
from isthmus.runtime.async_runtime import AsyncRuntime
from isthmus.runtime.sources import bundled_guests
from isthmus.snapshot import Saved, Store
from isthmus.version import VERSION
from isthmus.wasm import Guest

__version__ = VERSION

__all__ = [
    "Actor",
    "Adapter",
    "AsyncRuntime",
    "AsyncStream",
    "Capacity",
    "Counters",
    "Guest",
    "IsthmusError",
    "Job",
    "Limits",
    "Mapped",
    "Mapper",
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
    "config",
    "errors",
    "map",
]

# Who configures no logging reads what matters in exceptions, once.
logging.getLogger("isthmus").addHandler(logging.NullHandler())
