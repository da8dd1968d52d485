"""Guests of wasi-nn in WebAssembly text, and calls into one, argument by argument."""

from __future__ import annotations

import json
import struct
from typing import Any

import wasmtime

from isthmus.actor import Actor
from isthmus.runtime import Runtime
from isthmus.wasm.wasi_nn import N_PARAMS
from tests.attacks.proxy import Proxy, proxy_wat

NAME, CONFIG, TENSOR, DIMS, TEXT, NBYTES, OUT, HANDLE = (
    *(64, 1024, 8192, 8256, 16_384),
    *(8320, 32_768, 8328),
)
"""Where a test puts what its guest passes."""
OUT_NBYTES = 24_576


def forwarding_wat() -> str:
    """`proxy_wat`'s guest, which also exports each function of wasi-nn as `do_nn_<name>`."""
    imports, exports = [], []
    for name, n in N_PARAMS.items():
        params = f"(param {'i32 ' * n})"
        imports.append(
            f'(import "wasi_ephemeral_nn" "{name}" (func $nn_{name} {params} (result i32)))'
        )
        gets = " ".join(f"(local.get {i})" for i in range(n))
        exports.append(
            f'(func (export "do_nn_{name}") {params} (result i32) (call $nn_{name} {gets}))'
        )
    whole = proxy_wat()
    head, tail = whole[: len("(module ")], whole[len("(module ") : -1]
    return f"{head}{''.join(imports)}{tail}{''.join(exports)})"


def forwarding_guest() -> bytes:
    """Its module."""
    return bytes(wasmtime.wat2wasm(forwarding_wat()))


class Nn(Proxy):
    """An actor of that guest, and calls of wasi-nn by it."""

    def __init__(self, runtime: Runtime, wasm: bytes, **options: Any) -> None:
        super().__init__(runtime, wasm, **options)

    @classmethod
    def of_actor(cls, actor: Actor) -> Nn:
        """Calls into an actor that is there."""
        nn = cls.__new__(cls)
        nn.actor = actor
        return nn

    def nn(self, name: str, *arguments: int) -> int:
        """What a function returns."""
        from tests.attacks.proxy import call

        return call(self.actor, f"do_nn_{name}", *arguments)

    def u32(self, ptr: int) -> int:
        return int(struct.unpack("<I", self.read(ptr, 4))[0])

    def load(self, name: str = "default", **config: Any) -> tuple[int, int]:
        """(errno, number of the graph)."""
        text = json.dumps({key.replace("_", "-"): value for key, value in config.items()})
        self.write(NAME, name.encode())
        self.write(CONFIG, text.encode())
        arguments = NAME, len(name.encode()), CONFIG, len(text.encode()), HANDLE
        errno = self.nn("load_by_name_with_config", *arguments)
        return errno, self.u32(HANDLE)

    def open(self, **config: Any) -> int:
        """A context of a graph that is loaded with a configuration."""
        errno, graph = self.load(**config)
        assert errno == 0
        return self.init(graph)

    def init(self, graph: int) -> int:
        assert self.nn("init_execution_context", graph, HANDLE) == 0
        return self.u32(HANDLE)

    def tensor(self, data: bytes, kind: int = 3, dims: tuple[int, ...] = (1,)) -> None:
        """A tensor at TENSOR, with padding that is not zero."""
        self.write(TEXT, data)
        self.write(DIMS, struct.pack(f"<{len(dims)}I", *dims))
        fields = DIMS, len(dims), kind | 0xABCDEF00, TEXT, len(data)
        self.write(TENSOR, struct.pack("<5I", *fields))

    def put(self, context: int, text: str | bytes, index: int = 0) -> int:
        """set_input's errno."""
        self.tensor(text if isinstance(text, bytes) else text.encode())
        return self.nn("set_input", context, index, TENSOR)

    def change(self, context: int, **config: Any) -> int:
        """set_input's errno for a configuration."""
        keys = {key.replace("_", "-"): value for key, value in config.items()}
        return self.put(context, json.dumps(keys), 1)

    def output(self, context: int, index: int = 0, *, single: bool = False) -> bytes:
        name = "get_output_single" if single else "get_output"
        assert self.nn(name, context, index, OUT, OUT_NBYTES, NBYTES) == 0
        return self.read(OUT, self.u32(NBYTES))

    def metadata(self, context: int) -> dict[str, Any]:
        return dict(json.loads(self.output(context, 1)))
