"""The engines: one for most guests, others for those with a 64-bit memory or with limited fuel.

Counting instructions makes a tight loop half again as slow, and a 64-bit memory needs a comparison
for each access, so only those pay for it that want it. Each further engine, and a guest's code for
it, are made when they are first needed.
"""

from __future__ import annotations

import threading
from pathlib import Path

from isthmus.wasm.engine import Engine
from isthmus.wasm.guest import Guest
from isthmus.wasm.interface import is_64_bit
from isthmus.wasm.loading import Check


class Engines:
    """Owns them all. `plain` is that of most; instances must be closed before `close`."""

    def __init__(self, code_cache: Path | None = None, *, guard_pages: bool = True) -> None:
        """`guard_pages` as for an Engine."""
        self._guard_pages = guard_pages
        if code_cache is not None and not guard_pages:
            code_cache = code_cache / "bounds"
        self._code_cache = code_cache
        self._lock = threading.Lock()
        self._engines: dict[tuple[bool, bool], Engine] = {}
        """By whether the memory is 64-bit, and whether instructions are counted."""
        self.plain = self._engine(is_64=False, metered=False)

    def compile(self, wasm: bytes, name: str, *, trusted: bool = False) -> Guest:
        """Compiles a guest for the engine of its kind of memory; see `Engine.compile`."""
        engine = self._engine(is_64=is_64_bit(wasm), metered=False)
        return engine.compile(wasm, name, trusted=trusted)

    def unmetered(self, guest: Guest) -> Engine:
        """The engine that `compile` made the guest for."""
        return self._engine(is_64=guest.is_64, metered=False)

    def metered(self, guest: Guest, check: Check) -> tuple[Engine, Guest]:
        """The engine that counts instructions, and the guest compiled for it.

        `check` is called while this waits for the compiler, and may raise.
        """
        engine = self._engine(is_64=guest.is_64, metered=True)
        return engine, engine.compiled(guest, check)

    def forget(self, sha256: str) -> None:
        """Keeps nothing of such a module, nor on the disk. Actors that use it go on."""
        with self._lock:
            engines = list(self._engines.values())
        for engine in engines:
            engine.forget(sha256)

    def close(self) -> None:
        """Closes them; a second call does nothing."""
        for engine in self._engines.values():
            engine.close()

    def _engine(self, *, is_64: bool, metered: bool) -> Engine:
        """The engine of a kind, made now if it is the first time, which takes milliseconds."""
        key = (is_64, metered)
        with self._lock:
            if key not in self._engines:
                folder = self._code_cache
                for wanted, name in ((is_64, "memory64"), (metered, "metered")):
                    folder = folder / name if folder and wanted else folder
                self._engines[key] = Engine(
                    code_cache=folder, metered=metered, guard_pages=self._guard_pages, is_64=is_64
                )
            return self._engines[key]
