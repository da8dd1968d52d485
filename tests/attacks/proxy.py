"""A hostile guest, written by the test: it does whatever it is told, one host call at a time.

The module imports every function of the guest ABI and exports each as `do_<name>`, so a test calls
host functions with any arguments from inside the sandbox, by the same trampolines as a real guest.
"""

from __future__ import annotations

from typing import Any

from isthmus import abi
from isthmus.actor import Actor
from isthmus.model import Model
from isthmus.runtime import Runtime

PAGES = 64


def proxy_wat() -> str:
    """The module's text. Results of type i64 are stored at offset 8, their low word returned."""
    imports, exports = [], []
    for function in abi.HOST_FUNCTIONS:
        kinds = function.wasm_params
        params = f"(param {' '.join(kinds)})" if kinds else ""
        imports.append(
            f'(import "isthmus" "{function.name}" '
            f"(func $h_{function.name} {params} (result {function.wasm_result})))"
        )
        gets = " ".join(f"(local.get {index})" for index in range(len(kinds)))
        call = f"(call $h_{function.name} {gets})"
        if function.wasm_result == "i64":
            call = f"(local.set $r {call}) (i64.store (i32.const 8) (local.get $r))"
            call += "(i32.wrap_i64 (local.get $r))"
        exports.append(
            f'(func (export "do_{function.name}") {params} (result i32) (local $r i64) {call})'
        )
    return f"""(module {"".join(imports)} (memory (export "memory") {PAGES} 1024)
      (func (export "on_message") (param i32) (result i32) (i32.const 0)) {"".join(exports)})"""


class Proxy:
    """An actor of that guest, and calls into it."""

    def __init__(
        self, runtime: Runtime, wasm: bytes, model: Model | None = None, **options: Any
    ) -> None:
        """It is given the model as `default`, or the option `models`."""
        if model is not None:
            options["models"] = {"default": model}
        options = {"tools": {"echo": bytes}, **options}
        self.actor: Actor = runtime.spawn(wasm, seed=0, clock_ns=0, **options)

    @classmethod
    def of(cls, actor: Actor) -> Proxy:
        """Calls into an actor that was forked or restored."""
        proxy = cls.__new__(cls)
        proxy.actor = actor
        return proxy

    @classmethod
    def over(cls, actor: Actor) -> Proxy:
        """Calls into an actor that is there: a fork, or one that was restored."""
        proxy = cls.__new__(cls)
        proxy.actor = actor
        return proxy

    def call(self, name: str, *arguments: int) -> int:
        """A host function's result, as the guest sees it; of an i64, all of it."""
        result = self.actor.instance.call(f"do_{name}", *arguments)
        function = next(f for f in abi.HOST_FUNCTIONS if f.name == name)
        if function.wasm_result == "i64":
            return int.from_bytes(self.read(8, 8), "little", signed=True)
        return result

    def write(self, ptr: int, data: bytes) -> None:
        """Puts bytes into the guest's memory."""
        with self.actor.region.view(ptr, len(data)) as view:
            view.memory[:] = data

    def read(self, ptr: int, nbytes: int) -> bytes:
        """Bytes of the guest's memory."""
        with self.actor.region.view(ptr, nbytes) as view:
            return bytes(view.memory)

    def open_model(self, name: str = "default") -> int:
        """A handle of a model."""
        self.write(64, name.encode())
        return self.call("model_open", 64, len(name))

    def open_session(self, model: int, ptr: int, n_ctx: int = 256) -> int:
        """A handle of a session at `ptr`."""
        return self.call("session_open", model, n_ctx, ptr, self.session_nbytes(model, n_ctx))

    def open_grammar(self, model: int, kind: int, source: str) -> int:
        """A handle of a grammar; its source lies at offset 256 meanwhile."""
        data = source.encode()
        self.write(256, data)
        return self.call("grammar_open", model, kind, 256, len(data))

    def session_nbytes(self, model: int, n_ctx: int = 256) -> int:
        """How much a session needs."""
        return self.call("session_nbytes", model, n_ctx)
