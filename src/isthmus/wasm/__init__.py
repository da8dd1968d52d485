"""Guests: WebAssembly modules, their instances, and what they may call.

Owns wasmtime. Knows no model and no device: host functions are handed in as handlers.

::

    Engine ── compile ──► Guest ── Instance(engine, guest, handlers, …) ── begin ──► Call ── run
       │                              │          │
       │ watchdog, host calls         │ Fiber    │ Region: the linear memory
       └──────────────────────────────┴──────────┘
"""

from isthmus.wasm.call import SLICE_OVER, SLICE_S, Call, SliceOver
from isthmus.wasm.engine import Engine
from isthmus.wasm.guest import Guest
from isthmus.wasm.hostcalls import GuestMemory, Handler, Trace
from isthmus.wasm.instance import Instance
from isthmus.wasm.layout import Layout, layout_of
from isthmus.wasm.memory_creator import Reserve
from isthmus.wasm.state import GlobalValue, read_globals, write_globals
from isthmus.wasm.wasi import Wasi

__all__ = [
    "SLICE_OVER",
    "SLICE_S",
    "Call",
    "Engine",
    "GlobalValue",
    "Guest",
    "GuestMemory",
    "Handler",
    "Instance",
    "Layout",
    "Reserve",
    "SliceOver",
    "Trace",
    "Wasi",
    "layout_of",
    "read_globals",
    "write_globals",
]
