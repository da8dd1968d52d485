"""What happens between a guest's call and the host function that answers it.

Owns the ctypes trampolines of every import and, per thread, which instance is running. One place
reads raw arguments, counts, maps errors to errno, and checks the bounds of guest memory.

::

    guest ──► trampoline ──► handlers[index](*unsigned integers) ──► result
                  │
                  ├── GuestFault, or an error with an errno ──► -errno to the guest (WASI: +errno)
                  └── any other error ──► kept on the instance, and a trap ends the guest's call

An argument is 16 bytes wide: an i32 is its first 32-bit word, an i64 its first two. Handlers get
unsigned integers and return an int, signed or unsigned. No exception leaves a trampoline.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import wasmtime

from isthmus.abi import Errno
from isthmus.counters import Counters
from isthmus.errors import GuestFault, IsthmusError
from isthmus.memory.region import Region
from isthmus.native import wasmtime_capi as capi
from isthmus.units import GIB, GuestPtr, HostAddr

Handler = Callable[..., int]
Trace = Callable[[str, tuple[int, ...], "int | BaseException"], None]
"""(function, arguments, its result or what it raised); called on the guest's thread."""

_MASK = 0xFFFFFFFF
_WORDS = capi.WORDS_PER_VALUE


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


class CallTarget(Protocol):
    """What a trampoline needs of the running instance."""

    counters: Counters
    handlers: Sequence[Handler]
    """One for each HostImport, in the same order."""

    def fail(self, error: BaseException) -> None:
        """Keeps the error that the guest's call ends with."""

    pause: Callable[[], None]
    """Lets others go first for a moment, if they should."""

    def check(self) -> None:
        """Raises where the guest's call is to end."""


MOST_READ_NBYTES = GIB
"""That a host call copies out of a guest's memory at once."""


class Current(threading.local):
    """The instance whose guest runs on this thread."""

    target: CallTarget | None = None


class HostCalls:
    """Defines every import once in a linker. Must live as long as any store made with it."""

    def __init__(self, linker: wasmtime.Linker, imports: Sequence[HostImport]) -> None:
        self.imports = tuple(imports)
        self.current = Current()
        self._callbacks = [self._define(linker, i, imported) for i, imported in enumerate(imports)]

    def table(self, by_module: Mapping[str, Mapping[str, Handler]]) -> list[Handler]:
        """One handler for each import, in order; ENOTSUP answers what is not in `by_module`."""
        return [by_module[it.module].get(it.name, _unsupported) for it in self.imports]

    def traced(self, handlers: Sequence[Handler], trace: Trace) -> list[Handler]:
        """`handlers`, each telling `trace` what it was called with and what came of it."""
        return [_traced(it.name, handlers[i], trace) for i, it in enumerate(self.imports)]

    def _define(self, linker: wasmtime.Linker, index: int, imported: HostImport) -> Any:
        make = _plain_trampoline if _is_plain(imported.signature) else _mixed_trampoline
        callback = capi.HOST_CALLBACK(make(self.current, index, imported))
        signature = imported.signature.functype()
        capi.define_unchecked(linker, imported.module, imported.name, signature, callback)
        return callback


def _is_plain(signature: Signature) -> bool:
    """True for one or more i32 parameters and an i32 result.

    ctypes makes one element of an empty slice with a step, so no parameters is another matter.
    """
    return signature.result == "i32" and set(signature.params) == {"i32"}


def _plain_trampoline(current: Current, index: int, imported: HostImport) -> Handler:
    """For i32 parameters and an i32 result: one slice reads every argument."""
    firsts = slice(0, _WORDS * len(imported.signature.params), _WORDS)

    def trampoline(_env: int, _caller: int, values: Any, _n_values: int) -> int:
        target = current.target
        try:
            target.counters.host_calls += 1  # type: ignore[union-attr]
            values[0] = target.handlers[index](*values[firsts])  # type: ignore[union-attr]
        except BaseException as error:
            return _refuse(target, imported, values, error)
        return 0

    return trampoline


def _mixed_trampoline(current: Current, index: int, imported: HostImport) -> Handler:
    """For i64 among the parameters or results, no parameters or no result."""
    kinds = tuple((i * _WORDS, kind == "i64") for i, kind in enumerate(imported.signature.params))

    def trampoline(_env: int, _caller: int, values: Any, _n_values: int) -> int:
        target = current.target
        try:
            target.counters.host_calls += 1  # type: ignore[union-attr]
            arguments = [
                values[i] | values[i + 1] << 32 if wide else values[i] for i, wide in kinds
            ]
            result = target.handlers[index](*arguments)  # type: ignore[union-attr]
            _store(imported.signature, values, result)
        except BaseException as error:
            return _refuse(target, imported, values, error)
        return 0

    return trampoline


def _store(signature: Signature, values: Any, result: int) -> None:
    if signature.result is not None:
        values[0] = result & _MASK
    if signature.result == "i64":
        values[1] = result >> 32 & _MASK


def _refuse(
    target: CallTarget | None, imported: HostImport, values: Any, error: BaseException
) -> int:
    """Gives the guest an errno, or keeps the error and makes a trap."""
    if target is None:
        return capi.new_trap("a host function was called outside of Instance.call")
    code = error.code if isinstance(error, GuestFault) else getattr(error, "errno", None)
    if isinstance(error, IsthmusError) and code is not None and imported.signature.result:
        target.counters.faults += 1
        _store(imported.signature, values, imported.errno_of(code))
        return 0
    target.fail(error)
    return capi.new_trap(f"host function {imported.name} ended the call")


def _unsupported(*_arguments: int) -> int:
    raise GuestFault(Errno.ENOTSUP)


def _traced(name: str, handler: Handler, trace: Trace) -> Handler:
    def traced(*arguments: int) -> int:
        try:
            result = handler(*arguments)
        except BaseException as error:
            trace(name, arguments, error)
            raise
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
    until the instance is closed: a Region's base never moves.
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
        if nbytes > MOST_READ_NBYTES:  # string_at cuts a size at 32 bits
            raise GuestFault(Errno.EINVAL)
        data = ctypes.string_at(address, nbytes)
        self._counters.bytes_control += nbytes
        return data

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
        self.check_aligned(ptr, 4 * n, 4)
        return array("i", self.read(ptr, 4 * n))
