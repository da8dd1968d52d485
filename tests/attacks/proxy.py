"""A hostile guest, written by the test: it does whatever it is told, one host call at a time.

The module imports every function of the guest ABI and exports each as `do_<name>`, so a test calls
host functions with any arguments from inside the sandbox, in the same way as a real guest.
"""

from __future__ import annotations

from typing import Any

from isthmus import abi
from isthmus.actor import Actor
from isthmus.actor.message import Message
from isthmus.actor.shares import Share
from isthmus.model import Model
from isthmus.runtime import Runtime

PAGES = 64


def proxy_wat(*, is_64: bool = False) -> str:
    """The module's text. Results of type i64 are stored at offset 8, their low word returned.

    With a 64-bit memory, an i64 parameter is given as two of i32, the low word first.
    """
    width = "i64" if is_64 else "i32"
    size = f"i64 {PAGES} {1 << 20}" if is_64 else f"{PAGES} 1024"
    imports, exports = [], []
    for function in abi.HOST_FUNCTIONS:
        kinds = function.wasm_params_64 if is_64 else function.wasm_params
        params = f"(param {' '.join(kinds)})" if kinds else ""
        words = [word for kind in kinds for word in ("i32",) * (2 if kind == "i64" else 1)]
        given = f"(param {' '.join(words)})" if words else ""
        imports.append(
            f'(import "isthmus" "{function.name}" '
            f"(func $h_{function.name} {params} (result {function.wasm_result})))"
        )
        call = f"(call $h_{function.name} {_gets(kinds)})"
        if function.wasm_result == "i64":
            call = f"(local.set $r {call}) (i64.store ({width}.const 8) (local.get $r))"
            call += "(i32.wrap_i64 (local.get $r))"
        exports.append(
            f'(func (export "do_{function.name}") {given} (result i32) (local $r i64) {call})'
        )
    return f"""(module {"".join(imports)} (memory (export "memory") {size})
      (func (export "on_message") (param i32) (result i32) (i32.const 0)) {"".join(exports)})"""


def _gets(kinds: tuple[str, ...]) -> str:
    """The parameters as the host function takes them."""
    at, gets = 0, []
    for kind in kinds:
        low = f"(local.get {at})"
        if kind == "i64":
            high = f"(i64.shl (i64.extend_i32_u (local.get {at + 1})) (i64.const 32))"
            low = f"(i64.or (i64.extend_i32_u {low}) {high})"
        gets.append(low)
        at += 2 if kind == "i64" else 1
    return " ".join(gets)


def call(actor: Actor, name: str, *arguments: int) -> int:
    """Has the loop call a function of an actor's guest, as for a message, and waits for it."""
    body = actor.body
    body.context.message = Message(b"", actor.guest.name, Share())
    return body._run(body._call(name, *arguments))


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
        function = next(f for f in abi.HOST_FUNCTIONS if f.name == name)
        words = list(arguments)
        if self.actor.guest.is_64:
            kinds = zip(function.wasm_params_64, arguments, strict=True)
            words = [
                word
                for kind, value in kinds
                for word in ((value & 0xFFFF_FFFF, value >> 32) if kind == "i64" else (value,))
            ]
        result = call(self.actor, f"do_{name}", *words)
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
