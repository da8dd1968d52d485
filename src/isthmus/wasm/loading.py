"""Guests of one engine: each compiled once, kept while somebody uses it, and refused once.

::

    load ──► known? ──► refused lately? ──► in the code cache? ──► compiled here, or in a process
                                                                   of its own (`compiling.py`)

Callers who want the same module at the same time wait for one compilation. Nobody waits for that
of another module: no lock is held meanwhile.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import wasmtime

from isthmus.errors import GuestInvalid, Overloaded
from isthmus.native import wasmtime_capi as capi
from isthmus.wasm import instrument
from isthmus.wasm.code_cache import CodeCache
from isthmus.wasm.compiling import compile_apart, compile_here, unpack
from isthmus.wasm.engine_config import EngineKind
from isthmus.wasm.guest import Guest, check_bytes
from isthmus.wasm.interface import Interface

_KEPT = 64
_KEPT_NBYTES = 1 << 29
"""Bytes of the modules and machine code of guests that are kept although nobody uses them."""
_CHECK_S = 0.05
"""Seconds between two looks at whether somebody who waits is still to wait."""
_REFUSALS = 256
_REFUSED_S = 600.0
"""Seconds for which a refusal is remembered; a busy machine may have been its reason."""

Compile = Callable[[bytes, EngineKind], bytes]
"""From a module to a compiler's result; see `compiling.py`."""
Check = Callable[[], None]
"""Called while somebody waits; it may raise."""
Key = tuple[str, str]
"""A module's hash and its guest's name: what a stranger's snapshot calls it is not for others."""


@dataclass(frozen=True)
class Compiled:
    """A module in this process, and what is known of it."""

    module: wasmtime.Module
    interface: Interface
    nbytes: int
    """Bytes of machine code."""
    is_new: bool
    """Whether it was compiled now; its code was found in the cache otherwise."""


Make = Callable[[Compiled], Guest]
"""Checks and makes a guest. Raises GuestInvalid, without the guest's name."""


@dataclass
class _Flight:
    """A compilation that goes on."""

    done: threading.Event = field(default_factory=threading.Event)
    error: Overloaded | None = None


def nothing() -> None:
    """The check of one who waits until the end."""


class Refusals:
    """Modules that were refused lately, by hash, with the reason. Guarded by its user's lock."""

    def __init__(self) -> None:
        self._problems: OrderedDict[str, tuple[float, str]] = OrderedDict()

    def get(self, sha256: str) -> str:
        """Why a module was refused; empty if it was not, or too long ago."""
        since, problem = self._problems.get(sha256, (0.0, ""))
        return problem if time.monotonic() - since < _REFUSED_S else ""

    def add(self, sha256: str, problem: str) -> None:
        """Remembers a refusal, and forgets the oldest if there are too many."""
        self._problems[sha256] = (time.monotonic(), problem)
        self._problems.move_to_end(sha256)
        if len(self._problems) > _REFUSALS:
            self._problems.popitem(last=False)


class Loader:
    """See the module. Safe to use from several threads."""

    def __init__(self, engine: wasmtime.Engine, kind: EngineKind, cache: CodeCache) -> None:
        self._engine = engine
        self._kind = kind
        self._cache = cache
        self._lock = threading.Lock()
        self._alive: weakref.WeakValueDictionary[Key, Guest] = weakref.WeakValueDictionary()
        self._recent: OrderedDict[Key, tuple[Guest, int]] = OrderedDict()
        """Guests that stay, with their bytes, the one used last at the end."""
        self._flights: dict[str, _Flight] = {}
        self._refusals = Refusals()

    def load(
        self, wasm: bytes, key: Key, make: Make, *, trusted: bool, check: Check = nothing
    ) -> Guest:
        """The guest of a module, which `make` checks and makes of what was compiled.

        A `trusted` module is compiled in this process. `check` is called while this waits for
        another process, and may raise. Raises GuestInvalid, Overloaded.
        """
        sha256, name = key
        while True:
            with self._lock:
                if guest := self._known(key):
                    return guest
                if problem := self._refusals.get(sha256):
                    raise GuestInvalid(f"{name} {problem}")
                flight = self._flights.get(sha256)
                if flight is None:
                    mine = self._flights[sha256] = _Flight()
                    break
            while not flight.done.wait(_CHECK_S):
                check()
            if flight.error is not None:
                raise Overloaded(str(flight.error))
        try:
            compile_ = compile_here if trusted else partial(compile_apart, check=check)
            return self._load(wasm, key, make, compile_)
        except Overloaded as error:
            mine.error = error
            raise
        finally:
            with self._lock:
                del self._flights[sha256]
            mine.done.set()

    def forget(self, sha256: str) -> None:
        """Keeps no guest of such a module, nor its code on the disk."""
        with self._lock:
            for key in [key for key in self._recent if key[0] == sha256]:
                del self._recent[key]
        self._cache.forget(_file_name(sha256))

    def _load(self, wasm: bytes, key: Key, make: Make, compile_: Compile) -> Guest:
        sha256, name = key
        try:
            compiled, result = self._cached(sha256), b""
            if compiled is None:
                check_bytes(wasm)
                result = compile_(wasm, self._kind)
                compiled = self._taken(result, is_new=True)
            guest = make(compiled)
        except GuestInvalid as error:
            with self._lock:
                self._refusals.add(sha256, str(error))
            raise GuestInvalid(f"{name} {error}") from None
        if result:
            self._cache.put(_file_name(sha256), result)
        with self._lock:
            self._keep(key, guest, len(wasm) + compiled.nbytes)
        return guest

    def _cached(self, sha256: str) -> Compiled | None:
        """A module that was compiled earlier; None if there is no code of it that can be used."""
        result = self._cache.read(_file_name(sha256))
        if result is None:
            return None
        try:
            return self._taken(result, is_new=False)
        except (ValueError, GuestInvalid, wasmtime.WasmtimeError):
            self._cache.forget(_file_name(sha256))  # of another processor, or other settings
            return None

    def _taken(self, result: bytes, *, is_new: bool) -> Compiled:
        """What a compiler's result holds. Raises GuestInvalid, without the guest's name."""
        report, code = unpack(result)
        if report.interface is None:
            raise GuestInvalid(report.problem)
        module = wasmtime.Module.deserialize(self._engine, code)
        return Compiled(module, report.interface, len(code), is_new)

    def _known(self, key: Key) -> Guest | None:
        if key in self._recent:
            self._recent.move_to_end(key)
        return self._alive.get(key)

    def _keep(self, key: Key, guest: Guest, nbytes: int) -> None:
        self._alive[key] = guest
        self._recent[key] = (guest, nbytes)
        while len(self._recent) > _KEPT or self._nbytes() > _KEPT_NBYTES:
            self._recent.popitem(last=False)

    def _nbytes(self) -> int:
        return sum(nbytes for _, nbytes in self._recent.values())


def _file_name(sha256: str) -> str:
    return f"{sha256}.{instrument.VERSION}.{capi.VERSION}.cwasm"
