"""The host functions of the group `actor` in `abi/host.toml`, in its order."""

from __future__ import annotations

import logging
import threading
from functools import partial

from isthmus.abi import Errno, LogLevel
from isthmus.actor.ask import Aside
from isthmus.actor.host_api.context import (
    IN_LINE_NBYTES,
    LOG_RECORD_NBYTES,
    MAX_NAME_NBYTES,
    Context,
    Tool,
    guest_log,
)
from isthmus.errors import GuestFault, SettingsError
from isthmus.units import KIB, MIB

MAX_ARGS_NBYTES = 16 * MIB
MAX_RANDOM_NBYTES = MIB
_MOST_LOGGED = 256 * KIB
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
        text = c.memory.read(ptr, min(nbytes, _MOST_LOGGED)).decode(errors="replace")
        if nbytes > _MOST_LOGGED:
            text += f"… and {nbytes - _MOST_LOGGED} bytes more"
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

    async def tool_call(
        self, name_ptr: int, name_nbytes: int, args_ptr: int, args_nbytes: int
    ) -> int:
        c = self._c
        name = c.memory.read_text(name_ptr, name_nbytes, MAX_NAME_NBYTES)
        if args_nbytes > MAX_ARGS_NBYTES:
            raise GuestFault(Errno.EINVAL)
        c.memory.check(args_ptr, args_nbytes)
        tool = c.granted.tools.get(name)
        if tool is None:
            raise GuestFault(Errno.ENOENT)
        c.message.check()
        try:
            result = await Aside(
                c.message, partial(self._run, tool, args_ptr, args_nbytes), blocks=True
            )
        except Exception:
            guest_log.exception("the tool %r failed", name, extra={"agent": c.granted.label})
            raise GuestFault(Errno.EIO) from None
        if not isinstance(result, bytes):
            raise SettingsError(f"the tool {name!r} returned {type(result).__name__}, not bytes")
        c.message.tool_result = result
        return len(result)

    def _run(self, tool: Tool, args_ptr: int, args_nbytes: int) -> bytes:
        """Calls a tool, on a thread of its own."""
        self._c.tool_thread = threading.get_ident()
        try:
            return tool(self._c.memory.read(args_ptr, args_nbytes))
        finally:
            self._c.tool_thread = 0

    def tool_result(self, ptr: int, cap: int) -> int | Aside[int]:
        c = self._c
        if c.message.tool_result is None:
            raise GuestFault(Errno.EINVAL)
        return c.fill_soon(ptr, cap, c.message.tool_result)

    def log_stream(self, stream: int, data: bytes) -> None:
        """Logs what the guest writes to standard output (1) or standard error (2), by WASI."""
        c = self._c
        c.spend_output(LOG_RECORD_NBYTES + len(data))
        text = data.decode(errors="replace").rstrip("\n")
        c.log(logging.INFO if stream == 1 else logging.WARNING, text)
