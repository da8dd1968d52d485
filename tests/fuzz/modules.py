"""Guests: modules made by a grammar, mostly valid, and modules that are meant to hurt."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import ClassVar

from isthmus import Limits, Runtime, abi
from isthmus.actor import Actor
from isthmus.config import Environment
from isthmus.errors import IsthmusError, SnapshotError
from isthmus.units import WASM_PAGE
from isthmus.wasm.wasi import wasi_imports
from tests.fuzz import assembler as a
from tests.fuzz.program import Program
from tests.fuzz.surface import CAPACITY, Surface
from tests.tiny_gguf import TinyLlama

PATIENT = "patient"
"""A custom section of this name has the guest run without a deadline of the caller's."""
_ODD = (a.V128, a.FUNCREF, a.EXTERNREF, b"\x6e", b"\x40", b"\x63\x00")
_NUMBERS = (a.I32, a.I64, a.F32, a.F64)
_COUNTS = (0, 1, 2, 100, 0xFFFF, 0x10000, 0x7FFF_FFFF, 0xFFFF_FFFF, 2**40)


def _v128_export() -> bytes:
    return a.guest(
        types=[a.functype([a.V128])],
        functions=[(2, a.body(b""))],
        exports=[a.export("f", 0, 1)],
    )


def _v128_import() -> bytes:
    imported = a.name("isthmus") + a.name("emit") + b"\0" + a.leb(2)
    types = [a.ON_MESSAGE_TYPE, a.NOTHING_TYPE, a.functype([a.V128])]
    return a.guest(more={a.IMPORT: [imported], a.TYPE: types})


def _v128_global() -> bytes:
    value = a.V128 + b"\x01" + b"\xfd\x0c" + bytes(16) + a.END
    return a.guest(more={a.GLOBAL: [value]}, exports=[a.export("g", 3, 0)])


def _many_functions(n: int, code: bytes) -> bytes:
    return a.guest(functions=[(1, a.body(code))] * n)


def _br_tables() -> bytes:
    """3,000 tables of 2,000 entries, which go to fifty labels in turn."""
    table = b"\x20\x00\x0e" + a.vec([a.leb(n % 50) for n in range(2000)]) + a.leb(0)
    code = b"\x02\x40" * 50 + (b"\x02\x40" + table + a.END) * 3000 + a.END * 50
    return a.guest(functions=[(1, a.body(code, [a.I32]))])


def _nested_loops(n: int) -> bytes:
    return a.guest(functions=[(1, a.body(b"\x03\x40" * n + a.END * n))])


def _endless(export: str, kind: int = 1) -> bytes:
    code = b"\x03\x40\x0c\x00" + a.END + b"\x00"
    types = [a.functype([], [a.I32])]
    function = (kind, a.body(code))
    patient = a.custom(PATIENT)
    return a.guest(
        types=types, functions=[function], exports=[a.export(export, 0, 1)], others=[patient]
    )


def _exports(n: int) -> bytes:
    return a.guest(exports=[a.export(f"f{i}", 0, 0) for i in range(n)])


def _globals(n: int) -> bytes:
    return a.guest(more={a.GLOBAL: [a.I32 + b"\x01" + a.ANSWER + a.END] * n})


def _segments(n: int) -> bytes:
    segment = b"\0" + a.ANSWER + a.END + a.vec([a.leb(0)] * 1000)
    return a.guest(more={a.TABLE: [a.FUNCREF + b"\0" + a.leb(1000)], a.ELEMENT: [segment] * n})


def _names(n: int) -> bytes:
    names = a.vec([a.leb(i % 3) + a.name("\u202e\x1b[2J" * 9000) for i in range(n)])
    trap = a.body(b"\x00")
    types = [a.ON_MESSAGE_TYPE, a.NOTHING_TYPE]
    code = {a.TYPE: types, a.CODE: [trap]}
    return a.guest(more=code, others=[a.custom("name", b"\x01" + a.leb(len(names)) + names)])


class Fuzz(Surface):
    """Loads a module, spawns it, tells it something, saves, restores and forks it."""

    corpus: ClassVar = {
        "v128-export": _v128_export,
        "v128-import": _v128_import,
        "v128-global": _v128_global,
        "900000-functions": lambda: _many_functions(900_000, b""),
        "3000-br-tables": _br_tables,
        "million-nested-loops": lambda: _nested_loops(1_000_000),
        "endless-initialize": lambda: _endless("_initialize"),
        "endless-on-message": lambda: _endless("on_replay", 2),
        "20000-exports": lambda: _exports(20_000),
        "5000-globals": lambda: _globals(5000),
        "no-memory": lambda: a.guest(memory=b"\x01\x00\x00"),
        "no-memory-64": lambda: a.guest(memory=b"\x05\x00\x00"),
        "4-gib-at-once": lambda: a.guest(memory=b"\x00" + a.leb(65535)),
        "million-locals": lambda: a.guest(
            functions=[(1, b"\x08\x01" + a.leb(50_000) + a.V128 + b"\x0b" * 3)] * 2000
        ),
        "elements-for-a-second": lambda: _segments(20_000),
        "names-of-escapes": lambda: _names(40),
        "table-of-2-to-the-32": lambda: a.guest(
            more={a.TABLE: [a.FUNCREF + b"\0" + a.leb(0xFFFF_FFFF)]}
        ),
        "100000-data-segments": lambda: a.guest(
            more={a.DATA: [b"\0" + a.ANSWER + a.END + b"\x01x"] * 100_000}
        ),
        "operands-200000-deep": lambda: a.guest(
            functions=[(1, a.body(b"\x41\x00" * 200_000 + b"\x6a" * 199_999 + b"\x1a"))]
        ),
    }

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        cache = folder / "cache"
        self.runtime = Runtime(
            device="null", threads=1, environment=Environment(cache=cache), capacity=CAPACITY
        )
        path = TinyLlama(with_tokenizer=True).write(folder / "tiny.gguf")
        self.model = self.runtime.load_model(path)

    def close(self) -> None:
        self.runtime.close()

    def make(self, rng: random.Random) -> bytes:
        return _damage(_Module(rng).bytes(), rng) if rng.random() < 0.3 else _Module(rng).bytes()

    def run(self, data: bytes) -> str:
        patient = a.name(PATIENT) in data
        guest = self.runtime.load_guest(data)
        rng = random.Random(guest.sha256)
        limits = Limits(
            memory_nbytes=WASM_PAGE * rng.choice([1, 4, 64]),
            deadline_s=None if patient else 0.5,
            fuel=rng.choice([None, 100_000]),
            on_failure=rng.choice(["keep", "undo", "close"]),
            output_nbytes=100_000,
        )
        given = {"models": {"default": self.model}, "tools": {"echo": bytes}}
        with self.runtime.spawn(guest, seed=1, clock_ns=1, limits=limits, **given) as actor:
            said = _tell(actor)
            if actor.state == "closed":
                return f"closed after {said}"
            try:
                path = actor.snapshot(self.folder / "saved.safetensors").path
            except SnapshotError as error:
                raise AssertionError("a guest that can be spawned cannot be saved") from error
            with contextlib.ExitStack() as stack:
                for child in actor.fork(2):
                    stack.callback(child.close)
                    assert _tell(child) is not None
                again = stack.enter_context(self.runtime.restore(path, **given))
                _tell(again)
                actor.evict()
                _tell(actor)
        return f"ran: {said}"


def _tell(actor: Actor) -> str:
    """What comes of a message: an answer or the name of a typed error."""
    try:
        return "answer" if actor.send("hello").data is not None else ""
    except IsthmusError as error:
        return type(error).__name__


def _damage(data: bytes, rng: random.Random) -> bytes:
    """A module with some bytes changed, cut, or a length that lies."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(8, len(out))
        match rng.randrange(5):
            case 0:
                out[at] = rng.randrange(256)
            case 1:
                out[at] ^= 1 << rng.randrange(8)
            case 2:
                out[at:at] = a.leb(rng.choice(_COUNTS))
            case 3:
                del out[at : at + rng.randrange(1, 9)]
            case _:
                end = rng.randrange(at, min(len(out), at + 200))
                out[at:at] = out[at:end]
        if len(out) < 10:
            break
    return bytes(out)


class _Module:
    """A module with the exports of a guest and a random choice of everything else."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.types = [a.ON_MESSAGE_TYPE, a.NOTHING_TYPE, a.functype([], [a.I32])]
        self.signatures: list[tuple[list[bytes], list[bytes]]] = [
            ([a.I32], [a.I32]),
            ([], []),
            ([], [a.I32]),
        ]
        self.is_64 = rng.random() < 0.15

    def bytes(self) -> bytes:
        rng = self.rng
        for _ in range(rng.randrange(4)):
            self._type(self._kinds(4), self._kinds(2))
        imports = self._imports()
        n_own = rng.randrange(1, 7)
        kinds = [0, *(rng.randrange(3) for _ in range(n_own))]
        functions = [kind for kind, _ in imports] + kinds
        globals_ = [self._global() for _ in range(rng.randrange(5))]
        tables = [self._table() for _ in range(rng.choice([0, 1, 1, 2]))]
        elements = self._elements(len(functions)) if tables else []
        n_data = rng.randrange(3)
        program = Program(
            rng,
            signatures=self.signatures,
            functions=functions,
            globals_=[(kind, mutable) for kind, mutable, _ in globals_],
            n_tables=len(tables),
            n_data=n_data,
            n_elements=len(elements),
            is_64=self.is_64,
        )
        sections = {
            a.TYPE: self.types,
            a.IMPORT: [data for _, data in imports],
            a.FUNCTION: [a.leb(kind) for kind in kinds],
            a.TABLE: tables,
            a.MEMORY: [self._memory()],
            a.GLOBAL: [data for _, _, data in globals_],
            a.EXPORT: self._exports(len(imports), kinds, len(globals_), len(tables)),
            a.ELEMENT: elements,
            a.COUNT: [a.leb(n_data)] if n_data else [],
            a.CODE: [program.function(kind) for kind in kinds],
            a.DATA: [self._data() for _ in range(n_data)],
        }
        if rng.random() < 0.15 and 1 in kinds:
            sections[a.START] = [a.leb(len(imports) + kinds.index(1))]
        return a.module(sections, *self._customs())

    def _type(self, params: list[bytes], results: list[bytes]) -> int:
        self.types.append(a.functype(params, results))
        self.signatures.append((params, results))
        return len(self.types) - 1

    def _kinds(self, most: int) -> list[bytes]:
        odd = self.rng.random() < 0.04
        n = self.rng.randrange(most + 1) if self.rng.random() < 0.97 else 1000
        return [self.rng.choice(_ODD[:3] if odd else _NUMBERS) for _ in range(n)]

    def _imports(self) -> list[tuple[int, bytes]]:
        known = [("isthmus", it.name, self._wasm(it)) for it in abi.HOST_FUNCTIONS]
        known += [
            (it.module, it.name, (it.signature.params, it.signature.result))
            for it in wasi_imports(is_64=self.is_64)
        ]
        found = []
        for where, name, (params, result) in self.rng.sample(known, self.rng.randrange(5)):
            by_name = {"i32": a.I32, "i64": a.I64}
            kind = self._type(
                [by_name[it] for it in params], [by_name[result]] if result is not None else []
            )
            if self.rng.random() < 0.02:
                kind = self.rng.randrange(len(self.types))
            found.append((kind, a.name(where) + a.name(name) + b"\0" + a.leb(kind)))
        return found

    def _wasm(self, it: abi.HostFunction) -> tuple[tuple[str, ...], str | None]:
        return (it.wasm_params_64 if self.is_64 else it.wasm_params), it.wasm_result

    def _memory(self) -> bytes:
        low = self.rng.choice([1, 1, 1, 2, 4] if self.rng.random() < 0.9 else [0, 65, 65536])
        flags = 4 if self.is_64 else 0
        if self.rng.random() < 0.5:
            return bytes([flags]) + a.leb(low)
        return bytes([flags | 1]) + a.leb(low) + a.leb(low + self.rng.choice([0, 1, 100]))

    def _table(self) -> bytes:
        low = self.rng.choice([0, 1, 10, 10, 1000, 10_000_000])
        return a.FUNCREF + b"\0" + a.leb(low)

    def _global(self) -> tuple[bytes, bool, bytes]:
        constants = {
            a.I32: b"\x41" + a.sleb(self.rng.choice([0, -1, 2**31 - 1])),
            a.I64: b"\x42" + a.sleb(self.rng.choice([0, -1, 2**63 - 1])),
            a.F32: b"\x43" + self.rng.randbytes(4),
            a.F64: b"\x44" + self.rng.randbytes(8),
            a.V128: b"\xfd\x0c" + self.rng.randbytes(16),
            a.FUNCREF: b"\xd0\x70",
        }
        kind = self.rng.choice([*_NUMBERS, *_NUMBERS, *constants])
        mutable = self.rng.random() < 0.6
        return kind, mutable, kind + bytes([mutable]) + constants[kind] + a.END

    def _elements(self, n_functions: int) -> list[bytes]:
        rng, found = self.rng, []
        for _ in range(rng.randrange(3)):
            which = [a.leb(rng.randrange(n_functions)) for _ in range(rng.randrange(12))]
            head = rng.choice([b"\0" + a.ANSWER + a.END, b"\x01\0", b"\x03\0"])
            found.append(head + a.vec(which))
        return found

    def _data(self) -> bytes:
        data = self.rng.randbytes(self.rng.choice([0, 1, 16, 5000]))
        offset = (b"\x42" if self.is_64 else b"\x41") + a.sleb(
            self.rng.choice([0, 8, 8, 8, 60_000, 65_536])
        )
        head = self.rng.choice([b"\0" + offset + a.END, b"\x01"])
        return head + a.leb(len(data)) + data

    def _exports(
        self, n_imports: int, kinds: list[int], n_globals: int, n_tables: int
    ) -> list[bytes]:
        rng = self.rng
        out = [a.export("memory", 2, 0), a.export("on_message", 0, n_imports)]
        if 1 in kinds and rng.random() < 0.4:
            out.append(a.export("_initialize", 0, n_imports + kinds.index(1)))
        if 2 in kinds and rng.random() < 0.3:
            out.append(a.export("on_replay", 0, n_imports + kinds.index(2)))
        names = ["x", "\u202e", "", "isthmus:global:0", "_start", "y" * 1000]
        for text in rng.sample(names, rng.choice([0, 0, 0, 0, 1, 2])):
            kind, n = rng.choice([(0, len(kinds) + n_imports), (1, n_tables), (3, n_globals)])
            if n:
                out.append(a.export(text, kind, rng.randrange(n)))
        return out

    def _customs(self) -> list[bytes]:
        rng = self.rng
        names = ["name", "producers", "target_features", "isthmus", "\x1b[2J"]
        n = rng.choice([0, 0, 1, 2])
        return [a.custom(it, rng.randbytes(rng.randrange(50))) for it in rng.sample(names, n)]
