"""WASI preview 1, deterministic and with nothing granted.

A guest of a plain toolchain imports WASI for printing, clocks and random numbers. Here it prints
into the actor's log, reads the actor's virtual clock and draws from the actor's seed; there are no
files, sockets or other processes. Descriptors 0 to 2 exist and have no state, so a snapshot needs
none: closing one is accepted and changes nothing.

The specification knows 32-bit memories only. For a guest with a 64-bit one, pointers and sizes have
64 bits, as parameters and in memory, and nothing else differs.

WASI returns a positive errno of its own numbering.
Specification: https://github.com/WebAssembly/WASI/blob/main/legacy/preview1/docs.md
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from isthmus.abi import Errno
from isthmus.errors import GuestExited, GuestFault, SettingsError
from isthmus.units import KIB
from isthmus.wasm.hostcalls import GuestMemory, Handler, HostImport, Signature

MODULE = "wasi_snapshot_preview1"

SUCCESS, BADF, INVAL, NOTSUP, SPIPE, NOTCAPABLE = 0, 8, 28, 58, 70, 76
_WASI_ERRNO = {
    Errno.EINVAL: INVAL,
    Errno.EFAULT: 21,  # fault
    Errno.EALIGN: INVAL,
    Errno.EBADF: BADF,
    Errno.ENOENT: 44,  # noent
    Errno.ENOMEM: 48,  # nomem
    Errno.EBUSY: 10,  # busy
    Errno.ELIMIT: 19,  # dquot
    Errno.ENOTSUP: NOTSUP,
}
_IO = 29

_SIGNATURES = {
    "args_get": "pp",
    "args_sizes_get": "pp",
    "clock_res_get": "ip",
    "clock_time_get": "iIp",
    "environ_get": "pp",
    "environ_sizes_get": "pp",
    "fd_advise": "iIIi",
    "fd_allocate": "iII",
    "fd_close": "i",
    "fd_datasync": "i",
    "fd_fdstat_get": "ip",
    "fd_fdstat_set_flags": "ii",
    "fd_fdstat_set_rights": "iII",
    "fd_filestat_get": "ip",
    "fd_filestat_set_size": "iI",
    "fd_filestat_set_times": "iIIi",
    "fd_pread": "ippIp",
    "fd_prestat_dir_name": "ipp",
    "fd_prestat_get": "ip",
    "fd_pwrite": "ippIp",
    "fd_read": "ippp",
    "fd_readdir": "ippIp",
    "fd_renumber": "ii",
    "fd_seek": "iIip",
    "fd_sync": "i",
    "fd_tell": "ip",
    "fd_write": "ippp",
    "path_create_directory": "ipp",
    "path_filestat_get": "iippp",
    "path_filestat_set_times": "iippIIi",
    "path_link": "iippipp",
    "path_open": "iippiIIip",
    "path_readlink": "ippppp",
    "path_remove_directory": "ipp",
    "path_rename": "ippipp",
    "path_symlink": "ppipp",
    "path_unlink_file": "ipp",
    "poll_oneoff": "pppp",
    "proc_exit": "i",
    "proc_raise": "i",
    "random_get": "pp",
    "sched_yield": "",
    "sock_accept": "iip",
    "sock_recv": "ippipp",
    "sock_send": "ippip",
    "sock_shutdown": "ii",
}
"""Every function's parameters: i is i32, I is i64, p is a pointer or a size. All return an i32,
except proc_exit."""

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_FDSTAT = struct.Struct("<BxHxxxxQQ")
_CHARACTER_DEVICE = 2
_RIGHT_READ, _RIGHT_WRITE = 1 << 1, 1 << 6
_CLOCKS = range(4)
_CLOCK_RESOLUTION_NS = 1_000

MOST_IOVECS = 1_024
MOST_WRITE_NBYTES = 256 * KIB
"""What one fd_write takes; the guest is told that the rest was not written. Like the next, it keeps
everybody else waiting for some milliseconds."""
MOST_RANDOM_NBYTES = 256 * KIB
"""What one random_get takes."""


def wasi_errno(code: Errno) -> int:
    """WASI's number for one of our errno: what the guest gets for it."""
    return _WASI_ERRNO.get(code, _IO)


def wasi_imports(*, is_64: bool = False) -> list[HostImport]:
    """The 46 functions of preview 1; pointers and sizes are i64 where the memory `is_64`."""
    kinds = {"i": "i32", "I": "i64", "p": "i64" if is_64 else "i32"}
    return [
        HostImport(
            MODULE,
            name,
            Signature(
                tuple(kinds[kind] for kind in params), None if name == "proc_exit" else "i32"
            ),
            wasi_errno,
        )
        for name, params in _SIGNATURES.items()
    ]


class Wasi:
    """The WASI of one actor. Its callables run on the thread that drives the guest.

    clock_ns: nanoseconds since 1970, for all four clocks; random: n -> n bytes;
    log: (1 for stdout or 2 for stderr, bytes as the guest wrote them).
    """

    def __init__(
        self,
        *,
        clock_ns: Callable[[], int],
        random: Callable[[int], bytes],
        log: Callable[[int, bytes], None],
        args: Sequence[str] = (),
        environ: Sequence[str] = (),
    ) -> None:
        self._clock_ns = clock_ns
        self._random = random
        self._log = log
        self._args = _c_strings(args)
        self._environ = _c_strings(environ)
        self._memory: GuestMemory | None = None

    def attach(self, memory: GuestMemory) -> None:
        """Says whose memory the functions read and write. Called once, by the instance."""
        assert self._memory is None, "a Wasi belongs to one instance"
        self._memory = memory
        self._size = _U64 if memory.is_64 else _U32

    def handlers(self) -> dict[str, Handler]:
        """A handler for each of the 46 functions."""
        return {name: getattr(self, name, _FALLBACKS[name]) for name in _SIGNATURES}

    @property
    def memory(self) -> GuestMemory:
        """The guest's memory, once attached."""
        assert self._memory is not None, "attach was not called"
        return self._memory

    def args_sizes_get(self, count_ptr: int, nbytes_ptr: int) -> int:
        return self._sizes(self._args, count_ptr, nbytes_ptr)

    def args_get(self, pointers_ptr: int, text_ptr: int) -> int:
        return self._strings(self._args, pointers_ptr, text_ptr)

    def environ_sizes_get(self, count_ptr: int, nbytes_ptr: int) -> int:
        return self._sizes(self._environ, count_ptr, nbytes_ptr)

    def environ_get(self, pointers_ptr: int, text_ptr: int) -> int:
        return self._strings(self._environ, pointers_ptr, text_ptr)

    def clock_res_get(self, clock: int, ptr: int) -> int:
        if clock not in _CLOCKS:
            return INVAL
        self.memory.write(ptr, _U64.pack(_CLOCK_RESOLUTION_NS))
        return SUCCESS

    def clock_time_get(self, clock: int, _precision: int, ptr: int) -> int:
        if clock not in _CLOCKS:
            return INVAL
        self.memory.check(ptr, _U64.size)
        self.memory.write(ptr, _U64.pack(self._clock_ns()))
        return SUCCESS

    def random_get(self, ptr: int, nbytes: int) -> int:
        if nbytes > MOST_RANDOM_NBYTES:
            return INVAL
        self.memory.check(ptr, nbytes)
        self.memory.write(ptr, self._random(nbytes))
        return SUCCESS

    def fd_close(self, fd: int) -> int:
        return SUCCESS if fd <= 2 else BADF

    def fd_fdstat_get(self, fd: int, ptr: int) -> int:
        if fd > 2:
            return BADF
        rights = _RIGHT_WRITE if fd else _RIGHT_READ
        self.memory.write(ptr, _FDSTAT.pack(_CHARACTER_DEVICE, 0, rights, 0))
        return SUCCESS

    def fd_seek(self, fd: int, _offset: int, _whence: int, _ptr: int) -> int:
        return SPIPE if fd <= 2 else BADF

    def fd_tell(self, fd: int, _ptr: int) -> int:
        return SPIPE if fd <= 2 else BADF

    def fd_read(self, fd: int, _iovecs_ptr: int, _n: int, n_read_ptr: int) -> int:
        if fd != 0:
            return BADF
        self.memory.write(n_read_ptr, self._size.pack(0))
        return SUCCESS

    def fd_write(self, fd: int, iovecs_ptr: int, n: int, n_written_ptr: int) -> int:
        if fd not in (1, 2):
            return BADF
        if n > MOST_IOVECS:
            return INVAL
        self.memory.check(n_written_ptr, self._size.size)
        data = self._gather(iovecs_ptr, n)
        if data:
            self._log(fd, data)
        self.memory.write(n_written_ptr, self._size.pack(len(data)))
        return SUCCESS

    def fd_pwrite(self, fd: int, iovecs_ptr: int, n: int, _offset: int, n_written_ptr: int) -> int:
        return self.fd_write(fd, iovecs_ptr, n, n_written_ptr)

    def fd_prestat_get(self, _fd: int, _ptr: int) -> int:
        return BADF

    def poll_oneoff(self, _in_ptr: int, _out_ptr: int, _n: int, _n_events_ptr: int) -> int:
        return NOTSUP

    def proc_exit(self, status: int) -> int:
        raise GuestExited(status)

    def sched_yield(self) -> int:
        return SUCCESS

    def _sizes(self, strings: Sequence[bytes], count_ptr: int, nbytes_ptr: int) -> int:
        self.memory.write(count_ptr, self._size.pack(len(strings)))
        self.memory.write(nbytes_ptr, self._size.pack(sum(map(len, strings))))
        return SUCCESS

    def _strings(self, strings: Sequence[bytes], pointers_ptr: int, text_ptr: int) -> int:
        for i, text in enumerate(strings):
            self.memory.write(text_ptr, text)
            self.memory.write(pointers_ptr + self._size.size * i, self._size.pack(text_ptr))
            text_ptr += len(text)
        return SUCCESS

    def _gather(self, iovecs_ptr: int, n: int) -> bytes:
        """The bytes of `n` iovecs (ptr, nbytes), cut at MOST_WRITE_NBYTES."""
        data = self.memory.read(iovecs_ptr, 2 * self._size.size * n)
        iovecs = struct.iter_unpack("<QQ" if self.memory.is_64 else "<II", data)
        room, pieces = MOST_WRITE_NBYTES, []
        for ptr, nbytes in iovecs:
            self.memory.check(ptr, nbytes)
            pieces.append(self.memory.read(ptr, min(nbytes, room)))
            room -= len(pieces[-1])
        return b"".join(pieces)


def _c_strings(texts: Sequence[str]) -> list[bytes]:
    for text in texts:
        if "\0" in text:
            raise SettingsError(f"an argument or variable has a zero byte in it: {text!r}")
    try:
        return [text.encode() + b"\0" for text in texts]
    except UnicodeEncodeError:
        raise SettingsError("an argument or variable is no text: it has lone surrogates") from None


def _fallback(name: str) -> Handler:
    """The answer of what is not granted: no such descriptor, or no right to do that with it."""
    if name.startswith("fd_"):
        return lambda fd, *_rest: NOTCAPABLE if fd <= 2 else BADF
    if name.startswith(("path_", "sock_")):
        return lambda *_arguments: BADF
    return _not_supported


def _not_supported(*_arguments: int) -> int:
    raise GuestFault(Errno.ENOTSUP)


_FALLBACKS = {name: _fallback(name) for name in _SIGNATURES}
