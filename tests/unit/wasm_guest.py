"""Small guests in WebAssembly text, an instance of one with a quiet WASI, and ways to call it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import wasmtime

from isthmus.abi import MODULE
from isthmus.counters import Counters
from isthmus.errors import DeadlineExceeded
from isthmus.memory import Region
from isthmus.units import WASM_PAGE
from isthmus.wasm import Engine, Guest, Handler, Instance, Wasi
from isthmus.wasm.memory_creator import MemoryRequest

ON_MESSAGE = '(func (export "on_message") (param i32) (result i32) (local.get 0))'
MEMORY = '(memory (export "memory") 1)'


def wasm(*parts: str, memory: str = MEMORY, on_message: str = ON_MESSAGE) -> bytes:
    """A guest module of `parts`, in which imports come first."""
    imports = [part for part in parts if part.startswith("(import")]
    others = [part for part in parts if not part.startswith("(import")]
    return bytes(wasmtime.wat2wasm(f"(module {' '.join([*imports, memory, on_message, *others])})"))


class StoppedClock:
    """A clock that moves only when it is told to."""

    def __init__(self) -> None:
        self.now_ns = 0

    def read(self) -> int:
        return self.now_ns

    def move_to(self, ns: int) -> None:
        self.now_ns = max(self.now_ns, ns)


def quiet_wasi(**changed: Any) -> Wasi:
    """A WASI whose clock stands still and whose random bytes are zero."""
    settings: dict[str, Any] = {
        "clock": StoppedClock(),
        "random": bytes,
        "write": lambda stream, data: None,
    }
    return Wasi(**settings | changed)


def spawn(
    engine: Engine,
    guest: Guest | bytes,
    handlers: Mapping[str, Handler] | None = None,
    **changed: Any,
) -> Instance:
    """An instance with a limit of 16 pages."""
    if isinstance(guest, bytes):
        guest = engine.compile(guest, "test guest", trusted=True)
    settings: dict[str, Any] = {
        "wasi": quiet_wasi(),
        "memory": MemoryRequest(
            changed.pop("memory_limit_nbytes", 16 * WASM_PAGE),
            changed.pop("reserve", Region.reserve),
        ),
        "counters": Counters(),
    }
    return Instance(engine, guest, handlers={MODULE: handlers or {}}, **settings | changed)


def initialize(instance: Instance, **options: Any) -> None:
    """What an actor's spawn runs of the guest."""
    for name in instance.entry_points():
        instance.call(name, **options)


def until(end: float) -> Callable[[], None]:
    """A check that raises DeadlineExceeded from `end` on, on the clock of time.monotonic."""

    def check() -> None:
        if time.monotonic() >= end:
            raise DeadlineExceeded("the guest did not finish in time")

    return check
