"""Guests whose stack can be saved between two tokens: Binaryen's Asyncify has changed them.

Such a guest can leave each function that reaches a host call of `ASKING`, and get back into it.
What lies on its stack is written to its own linear memory, so a snapshot holds it. It exports two
globals, by which the host has it do so:

1. `__asyncify_state`, i32: 0 while it runs as ever, 1 while it leaves, 2 while it gets back
2. `__asyncify_data`, as wide as a pointer: where two pointers lie, to the end of what was written
   and to the end of the room for that

See https://github.com/WebAssembly/binaryen/blob/main/src/passes/Asyncify.cpp.
"""

from __future__ import annotations

from isthmus.abi import MODULE
from isthmus.errors import GuestInvalid
from isthmus.wasm import binary

STATE_GLOBAL = "__asyncify_state"
DATA_GLOBAL = "__asyncify_data"
ASKING = (
    "decode",
    "decode_many",
    "decode_batch",
    "emit_token",
    "prefill",
    "prefill_embeddings",
    "embed",
    "tool_call",
)
"""Host functions before which a guest can pause: those that wait for a model or the world."""
OPTIONS = (
    *("-g", "-O1", "--asyncify", "--pass-arg=asyncify-export-globals"),
    f"--pass-arg=asyncify-imports@{','.join(f'{MODULE}.{name}' for name in ASKING)}",
    *("--enable-simd", "--enable-bulk-memory", "--enable-sign-ext", "--enable-mutable-globals"),
    *("--enable-nontrapping-float-to-int", "--enable-reference-types", "--enable-multivalue"),
    *("--enable-memory64", "--enable-extended-const"),
)
"""Options of wasm-opt that make a module resumable. `-g` keeps the names of functions; `-O1` takes
out most of the code that Asyncify adds."""


def is_resumable(wasm: bytes) -> bool:
    """Whether a module exports both globals; False if it is none."""
    found = set()
    try:
        for section in binary.read_sections(wasm):
            if section.kind == binary.EXPORT:
                reader = section.reader(wasm)
                for _ in range(reader.unsigned()):
                    name, kind, _index = reader.name(), reader.byte(), reader.unsigned()
                    if kind == binary.GLOBAL_KIND:
                        found.add(name)
    except (IndexError, GuestInvalid):
        return False
    return {STATE_GLOBAL, DATA_GLOBAL} <= found
