"""Two engines: one for guests whose fuel is limited, and one for all others.

Counting instructions makes a tight loop half again as slow, so only those pay for it whose limit it
is. The second engine, and a guest's code for it, are made when they are first needed.
"""

from __future__ import annotations

import threading
from pathlib import Path

from isthmus.wasm.engine import Engine
from isthmus.wasm.guest import Guest


class Engines:
    """Owns both. `plain` compiles guests; instances must be closed before `close`."""

    def __init__(self, code_cache: Path | None = None, *, guard_pages: bool = True) -> None:
        """`guard_pages` as for an Engine."""
        self._guard_pages = guard_pages
        if code_cache is not None and not guard_pages:
            code_cache = code_cache / "bounds"
        self._code_cache = code_cache
        self._lock = threading.Lock()
        self._metered: Engine | None = None
        self._guests: dict[tuple[str, str], Guest] = {}
        self.plain = Engine(code_cache=code_cache, guard_pages=guard_pages)

    def metered(self, guest: Guest) -> tuple[Engine, Guest]:
        """The engine that counts instructions, and the guest compiled for it."""
        key = (guest.sha256, guest.name)
        with self._lock:
            if self._metered is None:
                folder = self._code_cache / "metered" if self._code_cache else None
                self._metered = Engine(
                    code_cache=folder, metered=True, guard_pages=self._guard_pages
                )
            if key not in self._guests:
                self._guests[key] = self._metered.compile(guest.wasm, guest.name)
            return self._metered, self._guests[key]

    def close(self) -> None:
        """Closes both; a second call does nothing."""
        self._guests.clear()
        self.plain.close()
        if self._metered is not None:
            self._metered.close()
