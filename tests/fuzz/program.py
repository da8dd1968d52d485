"""Function bodies that validate: statements and expressions by the type that is wanted."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tests.fuzz import assembler as a

_EMPTY = b"\x40"
_ZERO = {
    a.I32: b"\x41\x00",
    a.I64: b"\x42\x00",
    a.F32: b"\x43" + bytes(4),
    a.F64: b"\x44" + bytes(8),
    a.V128: b"\xfd\x0c" + bytes(16),
    a.FUNCREF: b"\xd0\x70",
}
_BINARY = {
    a.I32: [bytes([it]) for it in range(0x6A, 0x79)],
    a.I64: [bytes([it]) for it in range(0x7C, 0x8B)],
    a.F32: [bytes([it]) for it in range(0x92, 0x99)],
    a.F64: [bytes([it]) for it in range(0xA0, 0xA7)],
}
_CONVERSIONS = {
    a.I32: [(b"\xa7", a.I64), (b"\xaa", a.F64), (b"\xfc\x00", a.F32), (b"\x45", a.I32)],
    a.I64: [(b"\xad", a.I32), (b"\xb0", a.F64), (b"\xbd", a.F64)],
    a.F32: [(b"\xb2", a.I32), (b"\xb6", a.F64), (b"\x8f", a.F32), (b"\x91", a.F32)],
    a.F64: [(b"\xb9", a.I64), (b"\xbb", a.F32), (b"\x9f", a.F64)],
    a.V128: [(b"\xfd\x11", a.I32), (b"\xfd\x4d", a.V128)],
}
_LOAD = {a.I32: b"\x28\x02", a.I64: b"\x29\x03", a.F32: b"\x2a\x02", a.F64: b"\x2b\x03"}
_STORE = {a.I32: b"\x36\x02", a.I64: b"\x37\x03", a.F32: b"\x38\x02", a.F64: b"\x39\x03"}


class Program:
    """Bodies for the functions of one module, whose parts are given by their types."""

    def __init__(
        self,
        rng: random.Random,
        *,
        signatures: Sequence[tuple[list[bytes], list[bytes]]],
        functions: Sequence[int],
        globals_: Sequence[tuple[bytes, bool]],
        n_tables: int,
        n_data: int,
        n_elements: int,
        is_64: bool,
    ) -> None:
        self.rng = rng
        self.signatures = signatures
        self.functions = functions
        self.globals = globals_
        self.n_tables, self.n_data, self.n_elements = n_tables, n_data, n_elements
        self.address = a.I64 if is_64 else a.I32
        self._refused = rng.random() < 0.05
        """Whether it may do what no guest may, such as change a table."""
        self.locals: list[bytes] = []
        self.budget = 0

    def function(self, kind: int) -> bytes:
        """A body of that type."""
        params, results = self.signatures[kind]
        own = self.rng.choices(list(_ZERO), k=self.rng.randrange(4))
        self.locals = [*params, *own]
        self.budget = self.rng.choice([3, 20, 80])
        code = self.block(0) + b"".join(self.value(it) for it in results if it in _ZERO)
        return a.body(code, own)

    def block(self, depth: int) -> bytes:
        """Some statements; `depth` labels are around them."""
        return b"".join(self.statement(depth) for _ in range(self.rng.randrange(5)))

    def statement(self, depth: int) -> bytes:
        """One statement, which leaves nothing on the stack."""
        self.budget -= 1
        if self.budget < 0:
            return b""
        makers = (self._set, self._store, self._bulk, self._call, self._control, self._drop)
        return self.rng.choice(makers)(depth)

    def value(self, kind: bytes) -> bytes:
        """An expression of a type."""
        self.budget -= 1
        choices = [_ZERO[kind]]
        if kind in self.locals:
            choices.append(b"\x20" + a.leb(self.locals.index(kind)))
        found = [i for i, (it, _) in enumerate(self.globals) if it == kind]
        if found:
            choices.append(b"\x23" + a.leb(self.rng.choice(found)))
        if self.budget > 0:
            choices += self._deeper(kind)
        return self.rng.choice(choices)

    def _deeper(self, kind: bytes) -> list[bytes]:
        found = []
        if kind == a.I32:
            found.append(b"\x41" + a.sleb(self.rng.choice([1, -1, 64, 65_532, 2**31 - 1])))
            found.append(self.value(a.I64) + b"\x50")
        if kind == self.address:
            found += [b"\x3f\x00", self.value(kind) + b"\x40\x00"]
        if kind in _BINARY:
            found.append(self.value(kind) + self.value(kind) + self.rng.choice(_BINARY[kind]))
            found.append(self.value(self.address) + _LOAD[kind] + a.leb(self.rng.randrange(99)))
            found.append(self.value(kind) + self.value(kind) + self.value(a.I32) + b"\x1b")
        if kind in _CONVERSIONS:
            code, source = self.rng.choice(_CONVERSIONS[kind])
            found.append(self.value(source) + code)
        if kind == a.FUNCREF and self.n_tables:
            found.append(self.value(a.I32) + b"\x41\x00\x6a\x1a\xd0\x70")
        return found

    def _set(self, _depth: int) -> bytes:
        places = [b"\x21" + a.leb(i) for i in range(len(self.locals))]
        kinds = [*self.locals]
        for i, (kind, mutable) in enumerate(self.globals):
            if mutable:
                places.append(b"\x24" + a.leb(i))
                kinds.append(kind)
        if not places:
            return b"\x01"
        which = self.rng.randrange(len(places))
        return self.value(kinds[which]) + places[which]

    def _store(self, _depth: int) -> bytes:
        kind = self.rng.choice(list(_STORE))
        offset = a.leb(self.rng.choice([0, 8, 65_536, 0xFFFF_FFFF]))
        return self.value(self.address) + self.value(kind) + _STORE[kind] + offset

    def _bulk(self, _depth: int) -> bytes:
        address, number = (self.value(it) for it in (self.address, a.I32))
        found = [
            address + number + self.value(self.address) + b"\xfc\x0b\x00",
            address + self.value(self.address) + self.value(self.address) + b"\xfc\x0a\x00\x00",
        ]
        if self.n_data:
            which = a.leb(self.rng.randrange(self.n_data))
            found.append(address + number + self.value(a.I32) + b"\xfc\x08" + which + b"\x00")
            dropped = b"\xfc\x09" + which
            found += [dropped] if self._refused else []
        if self.n_tables and self._refused:
            found.append(b"\xd0\x70" + number + b"\xfc\x0f\x00\x1a")
            found.append(number + b"\xd0\x70" + b"\x26\x00")
        if self.n_tables and self.n_elements and self._refused:
            which = a.leb(self.rng.randrange(self.n_elements))
            found.append(number + number + self.value(a.I32) + b"\xfc\x0c" + which + b"\x00")
            found.append(b"\xfc\x0d" + which)
        return self.rng.choice(found)

    def _call(self, _depth: int) -> bytes:
        which = self.rng.randrange(len(self.functions))
        kind = self.functions[which]
        if len(self.signatures[kind][0]) > 20:
            return b"\x01"
        params, results = self.signatures[kind]
        code = b"".join(self.value(it) for it in params)
        if self.n_tables and self.rng.random() < 0.3:
            code += self.value(a.I32) + b"\x11" + a.leb(kind) + b"\x00"
        else:
            code += b"\x10" + a.leb(which)
        return code + b"\x1a" * len(results)

    def _control(self, depth: int) -> bytes:
        inner = self.block(depth + 1)
        match self.rng.randrange(6):
            case 0:
                return b"\x02" + _EMPTY + inner + a.END
            case 1:
                again = self.value(a.I32) + b"\x0d\x00"
                return b"\x03" + _EMPTY + inner + again + a.END
            case 2:
                return self.value(a.I32) + b"\x04" + _EMPTY + inner + a.END
            case 3:
                labels = a.vec([a.leb(self.rng.randrange(depth + 1)) for _ in range(3)])
                code = self.value(a.I32) + b"\x0e" + labels + a.leb(0)
                return b"\x02" + _EMPTY + code + a.END
            case 4:
                return b"\x02" + _EMPTY + b"\x00" + inner + a.END
            case _:
                return b"\x01"

    def _drop(self, _depth: int) -> bytes:
        return self.value(self.rng.choice(list(_ZERO))) + b"\x1a"
