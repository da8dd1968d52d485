"""What a server computes with, as it tells the others: equal ones give an agent the same bits."""

from __future__ import annotations

import hashlib

import msgspec
from msgspec import Struct

from isthmus.actor.snapshot import device_record
from isthmus.runtime import Runtime
from isthmus.server.settings import ServerSettings

_SETTINGS = ("width", "kv_type", "deterministic", "inexact", "repack", "graph")
"""Settings of models on which bits depend."""


class Computes(Struct, frozen=True, kw_only=True):
    """See the module; empty for a server of an earlier release."""

    device: str = ""
    library: str = ""
    """The ggml library and its version."""
    library_sha256: str = ""
    features: tuple[str, ...] = ()
    """Instruction sets."""
    threads: int = 0
    settings: dict[str, str | bool] = {}
    """Those of models on which bits depend, the class of width among them."""

    @property
    def kind(self) -> str:
        """The same for servers that compute the same bits, as far as they know."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:16]


def computes_of(runtime: Runtime, settings: ServerSettings) -> Computes:
    """What this server computes with. It reads the library's files, unless that was done before."""
    found = device_record(runtime.device, runtime.file_hashes)
    return Computes(
        device=found.name,
        library=found.library,
        library_sha256=found.library_sha256,
        features=found.features,
        threads=found.threads,
        settings={name: getattr(settings, name) for name in _SETTINGS},
    )
