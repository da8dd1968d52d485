"""Address space from the operating system: reserve, commit, map, advise, unmap.

Python's own `mmap` objects choose their address, cannot reserve without access and are pinned by
every view, so the few calls that a Region needs go to libc directly.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys

from isthmus.errors import RegionError

PROT_NONE, PROT_READ, PROT_WRITE = 0, 1, 2
_MAP_SHARED, _MAP_PRIVATE = 0x01, 0x02
_MAP_ANONYMOUS = 0x1000 if sys.platform == "darwin" else 0x20
_MAP_NORESERVE = 0x40 if sys.platform == "darwin" else 0x4000
_MAP_FIXED = 0x10
_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2
_MADV_DONTNEED = 4
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
if hasattr(_libc, "mremap"):  # Linux
    _libc.mremap.restype = ctypes.c_void_p
    _libc.mremap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_void_p,
    ]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


def _check(status: int, what: str) -> None:
    if status != 0:
        code = ctypes.get_errno()
        raise RegionError(f"{what}: {os.strerror(code)} ({errno.errorcode.get(code, code)})")


def _mmap(
    nbytes: int,
    protection: int,
    flags: int,
    what: str,
    file: tuple[int, int] = (-1, 0),
    at: int = 0,
) -> int:
    """`file` is a descriptor and an offset; `at` an address that is ours to replace."""
    address = _libc.mmap(at or None, nbytes, protection, flags, *file)
    if address is None or address == _FAILED:
        _check(-1, what)
    return int(address)


def reserve(nbytes: int) -> int:
    """Reserves `nbytes` of address space without access, backed by nothing yet."""
    flags = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE
    return _mmap(nbytes, PROT_NONE, flags, f"cannot reserve {nbytes} bytes of addresses")


def commit(address: int, nbytes: int) -> None:
    """Makes `nbytes` at `address` readable and writable; fresh pages read as zero."""
    if nbytes:
        status = _libc.mprotect(address, nbytes, PROT_READ | PROT_WRITE)
        _check(status, f"cannot commit {nbytes} bytes of memory")


def renew(address: int, nbytes: int) -> None:
    """Puts fresh pages, which read as zero, in the place of committed ones."""
    flags = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED
    _mmap(nbytes, PROT_READ | PROT_WRITE, flags, "cannot renew pages", at=address)


def empty(address: int, nbytes: int) -> None:
    """Gives committed pages that nobody mapped a file over back to the system: they read as zero.

    Unlike `renew`, it leaves the process with no more mappings than before, where it can.
    """
    if sys.platform != "linux":
        renew(address, nbytes)
        return
    _check(_libc.madvise(address, nbytes, _MADV_DONTNEED), "cannot give pages back")


def map_copy_on_write(address: int, nbytes: int, fd: int, offset: int) -> None:
    """Puts part of a file in the place of committed pages; writing gives pages of one's own."""
    flags = _MAP_PRIVATE | _MAP_NORESERVE | _MAP_FIXED
    what = f"cannot map {nbytes} bytes of a file copy-on-write"
    _mmap(nbytes, PROT_READ | PROT_WRITE, flags, what, (fd, offset), address)


def map_file(fd: int, nbytes: int) -> int:
    """Maps the first `nbytes` of a file, shared and read-only."""
    what = f"cannot map {nbytes} bytes of a file"
    return _mmap(nbytes, PROT_READ, _MAP_SHARED, what, (fd, 0))


def allocate(nbytes: int) -> int:
    """Maps fresh memory, which reads as zero."""
    flags = _MAP_PRIVATE | _MAP_ANONYMOUS
    return _mmap(nbytes, PROT_READ | PROT_WRITE, flags, f"cannot allocate {nbytes} bytes")


def replace(address: int, nbytes: int, source: int) -> None:
    """Puts the pages of `source`, from `allocate`, read-only in the place of a mapping, at once:
    whoever reads there meanwhile finds the ones or the others. Linux only."""
    _check(_libc.mprotect(source, nbytes, PROT_READ), "cannot protect a copy")
    flags = _MREMAP_MAYMOVE | _MREMAP_FIXED
    moved = _libc.mremap(source, nbytes, nbytes, flags, address)
    if moved is None or moved == _FAILED:
        _check(-1, "cannot put a copy in the place of a mapping")


def blank(address: int, nbytes: int) -> None:
    """Puts pages that read as zero, and take no memory, in the place of a mapping."""
    flags = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED
    _mmap(nbytes, PROT_READ, flags, "cannot blank a mapping", at=address)


def is_zero(address: int, nbytes: int) -> bool:
    """Whether all of the bytes are zero: the first is, and each equals the one before it."""
    first = ctypes.c_ubyte.from_address(address).value == 0
    return first and _libc.memcmp(address, address + 1, nbytes - 1) == 0


def unmap(address: int, nbytes: int) -> None:
    """Gives an address range back."""
    _check(_libc.munmap(address, nbytes), f"cannot unmap {nbytes} bytes")
