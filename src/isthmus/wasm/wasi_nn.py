"""Imports of `wasi_ephemeral_nn`, in WasmEdge's dialect for language models.

The functions themselves need models and sessions, see `isthmus.actor.nn`. All take pointers, sizes
and handles of 32 bits and return an errno of their own numbering; for 64-bit memories the interface
does not exist.

Specification: https://github.com/WebAssembly/wasi-nn, and for what is added to it
https://github.com/second-state/wasmedge-wasi-nn
"""

from __future__ import annotations

from enum import IntEnum

from isthmus.abi import Errno
from isthmus.wasm.hostcalls import HostImport, Signature

MODULE = "wasi_ephemeral_nn"


class NnErrno(IntEnum):
    """What a function returns."""

    SUCCESS = 0
    INVALID_ARGUMENT = 1
    INVALID_ENCODING = 2
    MISSING_MEMORY = 3
    BUSY = 4
    RUNTIME_ERROR = 5
    UNSUPPORTED_OPERATION = 6
    TOO_LARGE = 7
    NOT_FOUND = 8
    END_OF_SEQUENCE = 100
    CONTEXT_FULL = 101
    PROMPT_TOO_LONG = 102
    MODEL_NOT_FOUND = 103


_NN_ERRNO = {
    Errno.EFAULT: NnErrno.INVALID_ARGUMENT,
    Errno.EINVAL: NnErrno.INVALID_ARGUMENT,
    Errno.EBADF: NnErrno.INVALID_ARGUMENT,
    Errno.EALIGN: NnErrno.INVALID_ARGUMENT,
    Errno.EBUSY: NnErrno.BUSY,
    Errno.ENOTSUP: NnErrno.UNSUPPORTED_OPERATION,
    Errno.ENOMEM: NnErrno.TOO_LARGE,
    Errno.ELIMIT: NnErrno.TOO_LARGE,
    Errno.ENOENT: NnErrno.NOT_FOUND,
    Errno.ECONTEXT: NnErrno.CONTEXT_FULL,
}

N_PARAMS = {
    "load": 5,
    "load_by_name": 3,
    "load_by_name_with_config": 5,
    "unload": 1,
    "init_execution_context": 2,
    "finalize_execution_context": 1,
    "set_input": 3,
    "compute": 1,
    "compute_single": 1,
    "get_output": 5,
    "get_output_single": 5,
    "fini_single": 1,
}
"""Every function, and how many i32 it takes."""


def nn_errno(code: Errno) -> int:
    """The number for one of our errno: what the guest gets for it."""
    return _NN_ERRNO.get(code, NnErrno.RUNTIME_ERROR)


def nn_imports() -> list[HostImport]:
    """The functions, for guests with a 32-bit memory."""
    return [
        HostImport(MODULE, name, Signature(("i32",) * n, "i32"), nn_errno)
        for name, n in N_PARAMS.items()
    ]
