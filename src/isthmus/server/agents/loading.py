"""The guests that agents are made from: bundled ones, and those that clients brought."""

from __future__ import annotations

import re
import threading
from typing import Any

from isthmus import Runtime
from isthmus.errors import GuestInvalid
from isthmus.runtime.sources import bundled_guests
from isthmus.server.agents.guests import BroughtGuests
from isthmus.server.http.entry import current

_SHA256 = re.compile(r"[0-9a-f]{64}")


class Guests:
    """See the module. Its methods wait for the disk, or compile."""

    def __init__(self, runtime: Runtime, brought: BroughtGuests) -> None:
        self._runtime = runtime
        self._brought = brought
        self._lock = threading.Lock()
        """Of those that were brought."""

    def names(self) -> dict[str, str]:
        """Bundled guests by name, and those that were brought by hash."""
        brought = dict.fromkeys(self._brought.names(current().owner), "brought")
        return {**dict.fromkeys(bundled_guests(), "bundled"), **brought}

    def add(self, wasm: bytes) -> str:
        """Keeps a guest that compiles; returns its hash. GuestInvalid."""
        digest = self._runtime.load_guest(wasm).sha256
        with self._lock:
            self._brought.add(wasm, digest, current().owner)
        return digest

    def remove(self, digest: str) -> None:
        """Removes a guest that was brought, for whoever asks. HttpError 404, 409."""
        with self._lock:
            gone = self._brought.remove(digest, current().owner)
        if gone:
            self._runtime.forget_guest(digest)

    def load(self, name: str) -> Any:
        """A compiled guest by name or hash. GuestInvalid."""
        if name in bundled_guests():
            return self._runtime.load_guest(name)
        owner = current().owner
        with self._lock:
            wasm = self._brought.get(name, owner) if _SHA256.fullmatch(name) else None
        if wasm is None:
            known = ", ".join(bundled_guests())
            raise GuestInvalid(f"there is no guest {name!r}: give {known}, or bring one")
        return self._runtime.load_guest(wasm)
