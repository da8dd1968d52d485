"""One owner of one native handle."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import TypeVar

_OwnedType = TypeVar("_OwnedType", bound="Owned")
_FREED_AT_EXIT = sys.platform == "darwin"
"""Whether handles that are open when the process exits are freed. A daemon thread may still be
computing with them, and crash. But ggml's Metal backend ends every process that leaves buffers:
https://github.com/ggml-org/llama.cpp/pull/28395."""


class Owned:
    """Owns one native handle and frees it once: `with` or `close` first, garbage collection last.
    What is open when the process exits is left to the system, but for macOS.

    Subclasses never write `__del__`. Whatever must be freed later than this handle must be
    referenced by `free` or by its owner.
    """

    def __init__(self, handle: int, free: Callable[[int], object]) -> None:
        assert handle, "a null handle is an error that the caller should have reported"
        self._handle = handle
        self._finalizer = weakref.finalize(self, free, handle)
        self._finalizer.atexit = _FREED_AT_EXIT

    @property
    def handle(self) -> int:
        """The native handle; an assertion fails once it is closed."""
        assert self._finalizer.alive, f"{type(self).__name__} is closed"
        return self._handle

    @property
    def closed(self) -> bool:
        """True once the handle is freed."""
        return not self._finalizer.alive

    def close(self) -> None:
        """Frees the handle; a second call does nothing."""
        self._finalizer()

    def __enter__(self: _OwnedType) -> _OwnedType:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
