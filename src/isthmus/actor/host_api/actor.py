"""The host functions of the group `actor` in `abi/host.toml`, in its order."""

from __future__ import annotations

import logging
from functools import partial

from isthmus.abi import EmitFlag, Errno, LogLevel
from isthmus.actor.ask import Aside
from isthmus.actor.host_api.append import Append
from isthmus.actor.host_api.context import (
    IN_LINE_NBYTES,
    LOG_RECORD_NBYTES,
    Context,
)
from isthmus.errors import GuestFault
from isthmus.units import KIB, MIB

MAX_RANDOM_NBYTES = MIB
_END = int(EmitFlag.END)
_MAX_LOGGED = 256 * KIB
"""Bytes of one log record that are written; the rest is counted."""
_PART_NBYTES = 256 * KIB
"""Bytes of text that are decoded while no other Python runs: 3 ms if nothing of it is UTF-8."""
_LOG_LEVELS = {
    LogLevel.DEBUG.value: logging.DEBUG,
    LogLevel.INFO.value: logging.INFO,
    LogLevel.WARNING.value: logging.WARNING,
    LogLevel.ERROR.value: logging.ERROR,
}


class ActorFunctions:
    """See the module. One for each actor."""

    def __init__(self, context: Context) -> None:
        self._c = context

    def message_read(self, ptr: int, cap: int) -> int | Aside[int]:
        return self._c.fill_soon(ptr, cap, self._c.message.data)

    def emit(self, ptr: int, nbytes: int) -> int | Aside[int]:
        c = self._c
        if nbytes > IN_LINE_NBYTES:
            return Aside(c.message, partial(self._emit_long, ptr, nbytes))
        c.message.emit(c.output(ptr, nbytes))
        return 0

    def _emit_long(self, ptr: int, nbytes: int) -> int:
        c = self._c
        data = memoryview(c.output(ptr, nbytes))
        for at in range(0, nbytes, _PART_NBYTES):
            c.message.emit(data[at : at + _PART_NBYTES])
        return 0

    def emit_token(self, session: int, token: int, text_ptr: int, text_cap: int) -> int | Append:
        c = self._c
        ask = Append.of(c, session)
        text = ask.text_of(token - (token >> 31 << 32))  # the i32 that the guest means
        if text is None:
            return _END
        nbytes = c.memory.fill(text_ptr, text_cap, text)
        if nbytes > text_cap:
            return nbytes
        if c.message.stopping:
            raise GuestFault(Errno.ECANCELED)
        c.spend_output(nbytes)
        c.message.emit(text)
        return ask.next(token, nbytes)

    def reply(self, ptr: int, nbytes: int) -> int | Aside[int]:
        if nbytes > IN_LINE_NBYTES:
            return Aside(self._c.message, partial(self._reply, ptr, nbytes))
        return self._reply(ptr, nbytes)

    def _reply(self, ptr: int, nbytes: int) -> int:
        c = self._c
        c.message.reply = c.output(ptr, nbytes)
        return 0

    def log(self, level: int, ptr: int, nbytes: int) -> int | Aside[int]:
        if level not in _LOG_LEVELS:
            raise GuestFault(Errno.EINVAL)
        if nbytes > IN_LINE_NBYTES:
            return Aside(self._c.message, partial(self._log, level, ptr, nbytes))
        return self._log(level, ptr, nbytes)

    def _log(self, level: int, ptr: int, nbytes: int) -> int:
        c = self._c
        c.memory.check(ptr, nbytes)
        c.spend_output(LOG_RECORD_NBYTES + nbytes)
        text = c.memory.read(ptr, min(nbytes, _MAX_LOGGED)).decode(errors="replace")
        if nbytes > _MAX_LOGGED:
            text += f"… and {nbytes - _MAX_LOGGED} bytes more"
        c.log(_LOG_LEVELS[level], text)
        return 0

    def clock_ns(self) -> int:
        return self._c.clock.read()

    def random(self, ptr: int, nbytes: int) -> int | Aside[int]:
        if nbytes > MAX_RANDOM_NBYTES:
            raise GuestFault(Errno.EINVAL)
        self._c.memory.check(ptr, nbytes)
        if nbytes > IN_LINE_NBYTES:
            return Aside(self._c.message, partial(self._draw, ptr, nbytes))
        return self._draw(ptr, nbytes)

    def _draw(self, ptr: int, nbytes: int) -> int:
        self._c.memory.write(ptr, self._c.random.draw(nbytes))
        return 0

    def log_stream(self, stream: int, data: bytes) -> None:
        """Logs what the guest writes to standard output (1) or standard error (2), by WASI."""
        c = self._c
        c.spend_output(LOG_RECORD_NBYTES + len(data))
        text = data.decode(errors="replace").rstrip("\n")
        c.log(logging.INFO if stream == 1 else logging.WARNING, text)
