"""The few functions of wasmtime's C API that wasmtime-py does not wrap, or wraps slowly.

This is the only module that imports wasmtime-py's private bindings, so it works with exactly one
version of it, which `check_version` demands. wasmtime-py knows no fibers, and its own callback path
keeps a raised exception in a process global, where another thread may pick it up; no exception ever
crosses the boundary here. `wasmtime_fiber.py` has the order in which calls may be made.

Ownership: an error that a callback returns belongs to wasmtime from then on; an error or a trap
that a call returns is ours, and becomes a Failure, which frees it. Callbacks must be kept alive by
whoever registered them, for as long as any engine or store may call them.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

import wasmtime
from wasmtime import _bindings, _extern

from isthmus.errors import LibraryUnsupported

VERSION = "50.0.1"
VALUE_WORDS = 8
"""32-bit words of a wasmtime_val_t: its kind is the first byte."""
VALUE_AT = 2
"""The word at which its number begins: an i32 is one word, an i64 two."""
I64_KIND = 1
"""The kind of an i64; that of an i32 is 0."""
CONTINUATION_NBYTES = 24
"""A wasmtime_async_continuation_t: callback, its argument, finalizer or null."""

_SIZES = {
    "wasmtime_async_continuation_t": CONTINUATION_NBYTES,
    "wasmtime_func": 16,
    "wasmtime_instance": 16,
    "wasmtime_global": 24,
    "wasmtime_linear_memory": 32,
    "wasmtime_memory_creator": 24,
    "wasmtime_val": 4 * VALUE_WORDS,
}
_NO_FIBERS = (3, 14, 0)
"""The Python that cannot run on them: https://github.com/python/cpython/issues/139653"""
_MAX_FRAMES = 32
_VALUE_KINDS = ("i32", "i64", "f32", "f64", "v128")
"""By wasmtime's numbers for them."""
VALUE_NBYTES = {"i32": 4, "i64": 8, "f32": 4, "f64": 8, "v128": 16}

_ffi: Any = _bindings
IMPORT_CALLBACK = ctypes.CFUNCTYPE(None, *(ctypes.c_void_p,) * 2, *(ctypes.c_size_t,) * 6)
"""(env, caller, values, their count, results, their count, trap to fill, continuation to fill) ->
nothing. Addresses are plain integers, since ctypes takes longer to make pointers of them."""
EPOCH_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_size_t,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_uint64),
    ctypes.POINTER(ctypes.c_uint8),
)
"""(context, data, ticks to go on for, what to do) -> 0, or an error, which wasmtime then owns."""
YIELD = 1
"""An EPOCH_CALLBACK writes it, as what to do, to suspend the guest; 0 lets the guest go on."""
NEW_MEMORY_CALLBACK = _ffi.wasmtime_new_memory_callback_t
"""(env, type, minimum, maximum, reserved, guard, memory to fill) -> 0 or an error; in bytes."""
_LINEAR_MEMORY = dict(_ffi.wasmtime_linear_memory._fields_)
GET_MEMORY_CALLBACK = _LINEAR_MEMORY["get_memory"]
"""(env, bytes in use to fill, capacity in bytes to fill) -> address of the first byte."""
GROW_MEMORY_CALLBACK = _LINEAR_MEMORY["grow_memory"]
"""(env, new bytes in use) -> 0 or an error."""
FINALIZE_CALLBACK = _LINEAR_MEMORY["finalizer"]
"""(env) -> nothing: the memory is no longer used."""


@dataclass(frozen=True)
class MemoryCallbacks:
    """The functions of one linear memory. Kept alive by their owner."""

    get: Any
    grow: Any
    finalize: Any


class Frame(NamedTuple):
    """A place in a guest: a function's index, and an offset in its body."""

    function: int
    offset: int


@dataclass(frozen=True)
class Failure:
    """Why a call into a guest ended. `backtrace` begins with the innermost place."""

    message: str
    code: wasmtime.TrapCode | None = None
    backtrace: tuple[Frame, ...] = ()


def check_version() -> None:
    """Raises LibraryUnsupported unless the one known version of wasmtime-py is installed, and this
    Python can run on fibers.
    """
    if sys.version_info[:3] == _NO_FIBERS:
        raise LibraryUnsupported(
            "Python 3.14.0 mistakes the stack pointer of a fiber, on which guests run, for an "
            "overflow of its own stack. Python 3.14.1 mends that: use it, or a later one"
        )
    found = importlib.metadata.version("wasmtime")
    hint = f'Install it with: pip install "wasmtime=={VERSION}"'
    if found != VERSION:
        raise LibraryUnsupported(f"wasmtime {found} is installed, {VERSION} is needed. {hint}")
    sizes = {name: ctypes.sizeof(getattr(_ffi, name)) for name in _SIZES}
    wrong = [name for name, nbytes in _SIZES.items() if sizes[name] != nbytes]
    if _ffi.wasmtime_val.of.offset != 4 * VALUE_AT:
        wrong.append("wasmtime_val.of")
    if wrong:
        raise LibraryUnsupported(f"wasmtime lays out {', '.join(wrong)} in an unknown way. {hint}")


def set_memory_creator(config: wasmtime.Config, new_memory: Any) -> None:
    """Makes `new_memory`, a NEW_MEMORY_CALLBACK, give every linear memory of an engine."""
    creator = _ffi.wasmtime_memory_creator_t()
    creator.new_memory = new_memory
    _ffi.wasmtime_config_host_memory_creator_set(config.ptr(), ctypes.byref(creator))


def fill_linear_memory(memory: Any, env: int, callbacks: MemoryCallbacks) -> None:
    """Fills what a NEW_MEMORY_CALLBACK hands back; `env` comes back with each callback."""
    memory[0].env = env
    memory[0].get_memory = callbacks.get
    memory[0].grow_memory = callbacks.grow
    memory[0].finalizer = callbacks.finalize


def define_import(
    linker: wasmtime.Linker, module: str, name: str, signature: wasmtime.FuncType, callback: Any
) -> None:
    """Defines a host function by an IMPORT_CALLBACK: a guest that calls it is suspended. Raises
    ValueError if wasmtime refuses it."""
    define = function("wasmtime_linker_define_async_func")
    module_utf8, name_utf8 = module.encode(), name.encode()
    error = define(
        address(linker.ptr()),
        ctypes.c_char_p(module_utf8),
        ctypes.c_size_t(len(module_utf8)),
        ctypes.c_char_p(name_utf8),
        ctypes.c_size_t(len(name_utf8)),
        address(signature.ptr()),
        callback,
        None,
        None,
    )
    if error:
        raise ValueError(_take_error(error).message)


def context_of(store: wasmtime.Store) -> ctypes.c_void_p:
    """The address of a store's context, which most functions take."""
    return address(store._context())


def function_of(exported: wasmtime.Func) -> ctypes.c_void_p:
    """The address of an exported function. It lies in `exported`, which must stay alive."""
    return ctypes.c_void_p(ctypes.addressof(exported._func))


class InstanceMemory:
    """Where wasmtime puts a new instance."""

    def __init__(self) -> None:
        self._instance = _ffi.wasmtime_instance_t()
        self.address = ctypes.c_void_p(ctypes.addressof(self._instance))

    def made(self) -> wasmtime.Instance:
        """The instance, once it was put there."""
        return wasmtime.Instance._from_raw(self._instance)


def exported(
    instance: wasmtime.Instance, store: wasmtime.Store, name: str
) -> wasmtime.Func | wasmtime.Global | wasmtime.Memory | wasmtime.Table | None:
    """What an instance exports under a name.

    wasmtime-py's own way makes an object of each export first, in a time that grows with their
    square.
    """
    found, name_utf8 = _ffi.wasmtime_extern_t(), name.encode()
    is_there = _ffi.wasmtime_instance_export_get(
        store._context(),
        ctypes.byref(instance._instance),
        ctypes.create_string_buffer(name_utf8, len(name_utf8)),
        len(name_utf8),
        ctypes.byref(found),
    )
    return _extern.wrap_extern(found) if is_there else None  # type: ignore[return-value]


def new_error(message: str) -> int:
    """An error for a memory callback to return; wasmtime frees it."""
    return _int(_ffi.wasmtime_error_new(ctypes.create_string_buffer(message.encode())))


def set_epoch_callback(store: wasmtime.Store, callback: Any) -> None:
    """Has an EPOCH_CALLBACK decide, each time that `store`'s guest notices a new epoch."""
    setter = function("wasmtime_store_epoch_deadline_callback")
    setter(address(store.ptr()), callback, None, None)


def read_global(store: wasmtime.Store, found: wasmtime.Global) -> tuple[str, bytes]:
    """A global's type and bits, little-endian; exact where a Python float would not be."""
    value = _ffi.wasmtime_val_t()
    _ffi.wasmtime_global_get(store._context(), ctypes.byref(found._global), ctypes.byref(value))
    kind = _VALUE_KINDS[value.kind]
    return kind, ctypes.string_at(ctypes.addressof(value.of), VALUE_NBYTES[kind])


def write_global(store: wasmtime.Store, found: wasmtime.Global, kind: str, bits: bytes) -> None:
    """Sets a mutable global of type `kind`, which must be its own. Raises ValueError if it is
    not."""
    value = _ffi.wasmtime_val_t(kind=_VALUE_KINDS.index(kind))
    ctypes.memmove(ctypes.addressof(value.of), bits, VALUE_NBYTES[kind])
    error = _ffi.wasmtime_global_set(
        store._context(), ctypes.byref(found._global), ctypes.byref(value)
    )
    if error:
        raise ValueError(_take_error(_int(error)).message)


def base_address(memory: wasmtime.Memory, store: wasmtime.Store) -> int:
    """The host address of a linear memory's first byte, as wasmtime itself says."""
    return _int(memory.data_ptr(store))


def function(name: str, restype: Any = ctypes.c_void_p) -> Any:
    """A function of the library as an object of its own, so that its types disturb nobody.

    It has no argtypes: give it ctypes objects. That saves a third of each call's time.
    """
    found = _ffi.dll[name]
    found.restype = restype
    return found


def quick_function(name: str) -> Any:
    """As `function`, of one without a result that neither takes long nor calls back. The
    interpreter's lock is kept meanwhile, which saves half of such a call's time."""
    return ctypes.PYFUNCTYPE(None)((name, _ffi.dll))


def address(pointer: Any) -> ctypes.c_void_p:
    """A pointer as an address."""
    return ctypes.cast(pointer, ctypes.c_void_p)


def _int(pointer: Any) -> int:
    return address(pointer).value or 0


def take_failure(error: int, trap: int) -> Failure:
    """Why a call ended: takes its error or, if that is 0, its trap, and frees it."""
    return _take_error(error) if error else _take_trap(trap)


def _take_trap(address: int) -> Failure:
    pointer = ctypes.cast(address, ctypes.POINTER(_ffi.wasm_trap_t))
    with wasmtime.Trap._from_ptr(pointer) as trap:
        frames = _ffi.wasm_frame_vec_t()
        _ffi.wasm_trap_trace(pointer, ctypes.byref(frames))
        return Failure(trap.message, trap.trap_code, _take_frames(frames))


def _take_error(address: int) -> Failure:
    pointer = ctypes.cast(address, ctypes.POINTER(_ffi.wasmtime_error_t))
    with wasmtime.WasmtimeError._from_ptr(pointer) as error:
        frames = _ffi.wasm_frame_vec_t()
        _ffi.wasmtime_error_wasm_trace(pointer, ctypes.byref(frames))
        return Failure(str(error), None, _take_frames(frames))


def _take_frames(frames: Any) -> tuple[Frame, ...]:
    """A backtrace's places, innermost first; frees the backtrace."""
    try:
        kept = [frames.data[i] for i in range(min(frames.size, _MAX_FRAMES))]
        return tuple(
            Frame(_ffi.wasm_frame_func_index(it), _ffi.wasm_frame_func_offset(it)) for it in kept
        )
    finally:
        _ffi.wasm_frame_vec_delete(ctypes.byref(frames))
