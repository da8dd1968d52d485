"""WASI preview 1, deterministic and with nothing granted.

A guest of a plain toolchain imports WASI for printing, clocks and random numbers. Here it writes to
where its owner says, reads the actor's virtual clock and draws from the actor's seed; there are no
files, sockets or other processes. Descriptors 0 to 2 exist and have no state, so a snapshot needs
none: closing one is accepted and changes nothing. `wasi_table.py` says what each function does.

The specification knows 32-bit memories only. For a guest with a 64-bit one, pointers and sizes have
64 bits, as parameters and in memory, and nothing else differs.

WASI returns a positive errno of its own numbering.
Specification: https://github.com/WebAssembly/WASI/blob/main/legacy/preview1/docs.md
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Sequence

from isthmus.abi import Errno
from isthmus.errors import GuestExited, GuestFault, SettingsError
from isthmus.units import KIB
from isthmus.wasm.hostcalls import GuestMemory, Handler, HostImport, Signature
from isthmus.wasm.polling import (
    CLOCKS,
    EVENT_NBYTES,
    MAX_SUBSCRIPTIONS,
    SUBSCRIPTION_NBYTES,
    Clock,
    events,
    subscriptions,
)
from isthmus.wasm.wasi_table import FUNCTIONS

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

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_FDSTAT = struct.Struct("<BxHxxxxQQ")
_FILESTAT = struct.Struct("<QQB7x5Q")
_CHARACTER_DEVICE = 2
_RIGHT_READ, _RIGHT_WRITE = 1 << 1, 1 << 6
_CLOCK_RESOLUTION_NS = 1_000

MAX_IOVECS = 1_024
MAX_WRITE_NBYTES = 256 * KIB
"""What one fd_write takes; the guest is told that the rest was not written. Like the next, it keeps
everybody else waiting for some milliseconds."""
MAX_READ_NBYTES = 256 * KIB
"""What one fd_read gives."""
MAX_RANDOM_NBYTES = 256 * KIB
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
            found.name,
            Signature(tuple(kinds[it] for it in found.params), "i32" if found.returns else None),
            wasi_errno,
        )
        for found in FUNCTIONS
    ]


Read = Callable[[int], "bytes | Awaitable[bytes]"]
"""Standard input: n -> at most n bytes, at once or to be awaited; none at its end."""


def at_end(_nbytes: int) -> bytes:
    """An empty standard input."""
    return b""


class Wasi:
    """The WASI of one instance. Its callables run on the thread that drives the guest.

    random: n -> n bytes; write: (1 for standard output or 2 for standard error, bytes as the guest
    wrote them); read: see `Read`.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        random: Callable[[int], bytes],
        write: Callable[[int, bytes], None],
        read: Read = at_end,
        args: Sequence[str] = (),
        environ: Sequence[str] = (),
    ) -> None:
        self._clock = clock
        self._random = random
        self._write = write
        self._read = read
        self._args = c_strings(args)
        self._environ = c_strings(environ)
        self._memory: GuestMemory | None = None

    def attach(self, memory: GuestMemory) -> None:
        """Says whose memory the functions read and write. Called once, by the instance."""
        assert self._memory is None, "a Wasi belongs to one instance"
        self._memory = memory
        self._size = _U64 if memory.is_64 else _U32

    def handlers(self) -> dict[str, Handler]:
        """A handler for each of the 46 functions."""
        return {name: getattr(self, name, _FALLBACKS[name]) for name in _FALLBACKS}

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
        if clock not in CLOCKS:
            return INVAL
        self.memory.write(ptr, _U64.pack(_CLOCK_RESOLUTION_NS))
        return SUCCESS

    def clock_time_get(self, clock: int, _precision: int, ptr: int) -> int:
        if clock not in CLOCKS:
            return INVAL
        self.memory.check(ptr, _U64.size)
        self.memory.write(ptr, _U64.pack(self._clock.read()))
        return SUCCESS

    def random_get(self, ptr: int, nbytes: int) -> int:
        if nbytes > MAX_RANDOM_NBYTES:
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

    def fd_fdstat_set_flags(self, fd: int, _flags: int) -> int:
        return SUCCESS if fd <= 2 else BADF

    def fd_filestat_get(self, fd: int, ptr: int) -> int:
        if fd > 2:
            return BADF
        self.memory.write(ptr, _FILESTAT.pack(0, 0, _CHARACTER_DEVICE, 1, 0, 0, 0, 0))
        return SUCCESS

    def fd_pread(self, fd: int, _iovecs: int, _n: int, _offset: int, _n_read_ptr: int) -> int:
        return SPIPE if fd <= 2 else BADF

    def fd_read(self, fd: int, iovecs_ptr: int, n: int, n_read_ptr: int) -> int | Awaitable[int]:
        if fd != 0:
            return BADF
        if n > MAX_IOVECS:
            return INVAL
        self.memory.check(n_read_ptr, self._size.size)
        iovecs = self._iovecs(iovecs_ptr, n)
        for ptr, nbytes in iovecs:
            self.memory.check(ptr, nbytes)
        room = min(MAX_READ_NBYTES, sum(nbytes for _, nbytes in iovecs))
        data = self._read(room) if room else b""
        if isinstance(data, bytes):
            return self._scatter(data, iovecs, n_read_ptr)
        return self._scatter_later(data, iovecs, n_read_ptr)

    def fd_write(self, fd: int, iovecs_ptr: int, n: int, n_written_ptr: int) -> int:
        if fd not in (1, 2):
            return BADF
        if n > MAX_IOVECS:
            return INVAL
        self.memory.check(n_written_ptr, self._size.size)
        data = self._gather(iovecs_ptr, n)
        if data:
            self._write(fd, data)
        self.memory.write(n_written_ptr, self._size.pack(len(data)))
        return SUCCESS

    def fd_pwrite(self, fd: int, iovecs_ptr: int, n: int, _offset: int, n_written_ptr: int) -> int:
        return self.fd_write(fd, iovecs_ptr, n, n_written_ptr)

    def fd_prestat_get(self, _fd: int, _ptr: int) -> int:
        return BADF

    def poll_oneoff(self, in_ptr: int, out_ptr: int, n: int, n_events_ptr: int) -> int:
        if not 1 <= n <= MAX_SUBSCRIPTIONS:
            return INVAL
        self.memory.check(n_events_ptr, self._size.size)
        self.memory.check(out_ptr, EVENT_NBYTES * n)
        wanted = subscriptions(self.memory.read(in_ptr, SUBSCRIPTION_NBYTES * n))
        found = events(wanted, self._clock)
        self.memory.write(out_ptr, b"".join(found))
        self.memory.write(n_events_ptr, self._size.pack(len(found)))
        return SUCCESS

    def proc_exit(self, status: int) -> int:
        raise GuestExited(status)

    def sched_yield(self) -> int:
        return SUCCESS

    def _sizes(self, strings: Sequence[bytes], count_ptr: int, nbytes_ptr: int) -> int:
        self.memory.check(nbytes_ptr, self._size.size)
        self.memory.write(count_ptr, self._size.pack(len(strings)))
        self.memory.write(nbytes_ptr, self._size.pack(sum(map(len, strings))))
        return SUCCESS

    def _strings(self, strings: Sequence[bytes], pointers_ptr: int, text_ptr: int) -> int:
        self.memory.check(pointers_ptr, self._size.size * len(strings))
        self.memory.check(text_ptr, sum(map(len, strings)))
        for i, text in enumerate(strings):
            self.memory.write(text_ptr, text)
            self.memory.write(pointers_ptr + self._size.size * i, self._size.pack(text_ptr))
            text_ptr += len(text)
        return SUCCESS

    def _iovecs(self, iovecs_ptr: int, n: int) -> list[tuple[int, int]]:
        """`n` parts of memory, each (ptr, nbytes), that a guest wants to be read or filled."""
        data = self.memory.read(iovecs_ptr, 2 * self._size.size * n)
        return list(struct.iter_unpack("<QQ" if self.memory.is_64 else "<II", data))

    def _gather(self, iovecs_ptr: int, n: int) -> bytes:
        """The bytes of `n` parts, cut at MAX_WRITE_NBYTES."""
        room, pieces = MAX_WRITE_NBYTES, []
        for ptr, nbytes in self._iovecs(iovecs_ptr, n):
            self.memory.check(ptr, nbytes)
            pieces.append(self.memory.read(ptr, min(nbytes, room)))
            room -= len(pieces[-1])
        return b"".join(pieces)

    def _scatter(self, data: bytes, iovecs: Sequence[tuple[int, int]], n_read_ptr: int) -> int:
        """Fills parts of memory, which were checked, with what was read."""
        at = 0
        for ptr, nbytes in iovecs:
            part = data[at : at + nbytes]
            self.memory.write(ptr, part)
            at += len(part)
        self.memory.write(n_read_ptr, self._size.pack(at))
        return SUCCESS

    async def _scatter_later(
        self, data: Awaitable[bytes], iovecs: Sequence[tuple[int, int]], n_read_ptr: int
    ) -> int:
        return self._scatter(await data, iovecs, n_read_ptr)


def c_strings(texts: Sequence[str]) -> list[bytes]:
    """Texts as C has them; SettingsError if one cannot be."""
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


_FALLBACKS = {it.name: _fallback(it.name) for it in FUNCTIONS}
