"""What a guest may import, and what host functions see of its memory.

Owns the callbacks of every import, and knows how each one's arguments and result lie.

::

    guest ──► callback, on its fiber ──► Call.run, on the driving thread's stack
                                           └─► handlers[number](*unsigned integers) ──► result

Handlers get unsigned integers. They return an int, signed or unsigned, or something to await that
gives one.
"""

from __future__ import annotations

import ctypes
import struct
from array import array
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import wasmtime

from isthmus.abi import Errno
from isthmus.counters import Counters
from isthmus.errors import GuestFault
from isthmus.memory.region import Region
from isthmus.native import wasmtime_capi as capi
from isthmus.native.wasmtime_fiber import MAX_VALUES, Threads, import_callback
from isthmus.units import GIB, MIB, GuestPtr, HostAddr

Handler = Callable[..., "int | Awaitable[int]"]
Trace = Callable[[str, tuple[int, ...], "int | BaseException"], None]
"""(function, arguments, its result or what it raised); called on the driving thread."""

MAX_READ_NBYTES = GIB
"""That a host call copies out of a guest's memory at once."""
_PART_NBYTES = MIB
"""Bytes that are copied while no other Python runs; `bytes.join` lets others run."""


@dataclass(frozen=True)
class Signature:
    """A WebAssembly function type; each type is 'i32' or 'i64', and there is one result or none."""

    params: tuple[str, ...]
    result: str | None

    def functype(self) -> wasmtime.FuncType:
        """The same for wasmtime."""
        make = {"i32": wasmtime.ValType.i32, "i64": wasmtime.ValType.i64}
        results = [make[self.result]()] if self.result else []
        return wasmtime.FuncType([make[kind]() for kind in self.params], results)

    def __str__(self) -> str:
        return f"({', '.join(self.params)}) -> {self.result or '()'}"


@dataclass(frozen=True)
class HostImport:
    """A function that a guest may import."""

    module: str
    name: str
    signature: Signature
    errno_of: Callable[[Errno], int]
    """What the guest gets for an errno: its negative, or WASI's own number."""


def negative_errno(code: Errno) -> int:
    """The convention of module `isthmus`."""
    return -code


class HostCalls:
    """Defines every import once in a linker. Must live as long as any store made with it."""

    def __init__(self, linker: wasmtime.Linker, imports: Sequence[HostImport]) -> None:
        self.imports = tuple(imports)
        self.names = frozenset((it.module, it.name) for it in imports)
        self.threads = Threads()
        signatures = [it.signature for it in imports]
        self.arguments = [_arguments(it) for it in signatures]
        """For each import, what makes a tuple of unsigned arguments of `Fiber.words`."""
        self.results = [_result_word(it) for it in signatures]
        """For each import, the element of `Fiber.words` that its i32 result is; 0 if it is none."""
        self._callbacks = [self._define(linker, i, it) for i, it in enumerate(imports)]

    def table(self, by_module: Mapping[str, Mapping[str, Handler]]) -> list[Handler]:
        """One handler for each import, in order; ENOTSUP answers what is not in `by_module`."""
        return [by_module.get(it.module, {}).get(it.name, _unsupported) for it in self.imports]

    def traced(self, handlers: Sequence[Handler], trace: Trace) -> list[Handler]:
        """`handlers`, each telling `trace` what it was called with and what came of it."""
        return [_traced(it.name, handlers[i], trace) for i, it in enumerate(self.imports)]

    def give(self, words: Any, number: int, result: int) -> None:
        """Writes the result of an import, of whatever type it is, into `Fiber.words`."""
        signature = self.imports[number].signature
        at = capi.VALUE_WORDS * len(signature.params)
        if signature.result == "i64":
            words[at] = capi.I64_KIND
            words[at + capi.VALUE_AT + 1] = result >> 32
        if signature.result is not None:
            words[at + capi.VALUE_AT] = result

    def _define(self, linker: wasmtime.Linker, number: int, imported: HostImport) -> Any:
        callback = import_callback(self.threads, number)
        signature = imported.signature.functype()
        capi.define_import(linker, imported.module, imported.name, signature, callback)
        return callback


_ARGUMENT = {"i32": "8xI20x", "i64": "8xQ16x"}
"""How each type lies in a wasmtime_val_t, for `struct`."""


def _arguments(signature: Signature) -> Callable[[Any], tuple[int, ...]]:
    assert len(signature.params) < MAX_VALUES
    return struct.Struct("<" + "".join(_ARGUMENT[it] for it in signature.params)).unpack_from


def _result_word(signature: Signature) -> int:
    at = capi.VALUE_WORDS * len(signature.params) + capi.VALUE_AT
    return at if signature.result == "i32" else 0


def _unsupported(*_arguments: int) -> int:
    raise GuestFault(Errno.ENOTSUP)


def _traced(name: str, handler: Handler, trace: Trace) -> Handler:
    async def later(arguments: tuple[int, ...], result: Awaitable[int]) -> int:
        try:
            found = await result
        except BaseException as error:
            trace(name, arguments, error)
            raise
        trace(name, arguments, found)
        return found

    def traced(*arguments: int) -> int | Awaitable[int]:
        try:
            result = handler(*arguments)
        except BaseException as error:
            trace(name, arguments, error)
            raise
        if not isinstance(result, int):
            return later(arguments, result)
        trace(name, arguments, result)
        return result

    return traced


class _NoMemory:
    """Stands in for the Region of a closed instance: nothing lies inside it."""

    base = HostAddr(0)
    nbytes = -1


class GuestMemory:
    """A guest's linear memory as host functions see it: every access is checked here.

    Owns nothing. Offsets and lengths are what the guest passed, unsigned. Addresses stay valid
    until the instance is closed: a Region's base never moves. What a guest may not reach, or gave
    wrongly, raises GuestFault.
    """

    def __init__(self, region: Region, counters: Counters, *, is_64: bool = False) -> None:
        self._region: Region | _NoMemory = region
        self._counters = counters
        self.is_64 = is_64
        """Whether its pointers have 64 bits: what a struct that holds one looks like."""

    @property
    def region(self) -> Region:
        """The Region itself; an assertion fails once detached."""
        assert isinstance(self._region, Region), "the instance is closed"
        return self._region

    @property
    def nbytes(self) -> int:
        """Bytes of linear memory now; 0 once detached."""
        return max(self._region.nbytes, 0)

    def detach(self) -> None:
        """Forgets the Region, which is about to close; every later access is EFAULT."""
        self._region = _NoMemory()

    def check(self, ptr: int, nbytes: int) -> HostAddr:
        """The host address of `nbytes` at offset `ptr`; EFAULT where they are not all inside."""
        region = self._region
        if ptr < 0 or nbytes < 0 or ptr + nbytes > region.nbytes:
            raise GuestFault(Errno.EFAULT)
        return HostAddr(region.base + ptr)

    def check_aligned(self, ptr: int, nbytes: int, alignment: int) -> HostAddr:
        """As `check`; EALIGN where `ptr` is not a multiple of `alignment`, a power of two."""
        if ptr & (alignment - 1):
            raise GuestFault(Errno.EALIGN)
        return self.check(ptr, nbytes)

    def read(self, ptr: int, nbytes: int) -> bytes:
        """A copy of `nbytes` at `ptr`, counted as control bytes; EINVAL for what nobody copies."""
        address = self.check(ptr, nbytes)
        if nbytes > MAX_READ_NBYTES:  # string_at cuts a size at 32 bits
            raise GuestFault(Errno.EINVAL)
        self._counters.bytes_control += nbytes
        if nbytes <= _PART_NBYTES:
            return ctypes.string_at(address, nbytes)
        parts = range(0, nbytes, _PART_NBYTES)
        return b"".join(
            [ctypes.string_at(address + at, min(_PART_NBYTES, nbytes - at)) for at in parts]
        )

    def write(self, ptr: int, data: bytes) -> None:
        """Writes `data` at `ptr`."""
        ctypes.memmove(self.check(ptr, len(data)), data, len(data))

    def read_text(self, ptr: int, nbytes: int, limit: int) -> str:
        """UTF-8 text of at most `limit` bytes; EINVAL where it is longer or not UTF-8."""
        if nbytes > limit:
            raise GuestFault(Errno.EINVAL)
        try:
            return self.read(ptr, nbytes).decode()
        except UnicodeDecodeError:
            raise GuestFault(Errno.EINVAL) from None

    def unpack(self, layout: struct.Struct, ptr: int) -> tuple[Any, ...]:
        """The fields of one struct, copied before anybody validates them."""
        return layout.unpack(self.read(ptr, layout.size))

    def read_i32_array(self, ptr: GuestPtr | int, n: int) -> array[int]:
        """`n` signed 32-bit integers, [n], at a multiple of 4 bytes."""
        if ptr & 3:
            raise GuestFault(Errno.EALIGN)
        return array("i", self.read(ptr, 4 * n))
