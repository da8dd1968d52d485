"""Why a function of wasi-nn fails, in its own numbers."""

from __future__ import annotations

from isthmus.wasm.wasi_nn import NnErrno


class NnFault(Exception):
    """What the guest gets as `errno`, and what the log says of it. Never leaves the functions."""

    def __init__(self, errno: NnErrno, said: str = "") -> None:
        super().__init__(said or errno.name)
        self.errno = errno
        self.said = said


def refused(said: str = "") -> NnFault:
    """The fault of an argument that is none, or out of range."""
    return NnFault(NnErrno.INVALID_ARGUMENT, said)


def unsupported(said: str) -> NnFault:
    """The fault of what would give another answer here than was asked for."""
    return NnFault(NnErrno.UNSUPPORTED_OPERATION, said)
