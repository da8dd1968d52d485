"""A command's standard streams, for one message.

=======  ======================================================================================
input    the bytes of the message, or a file's as they come
output   the answer, told as it is written
error    the log, line by line
=======  ======================================================================================

A file is read on a thread of its own, no more at once than the guest asks for, so whoever shares
the file finds the rest. Between two looks at whether there is anything to read, the thread looks at
whether the message is to end.
"""

from __future__ import annotations

import logging
import os
import select
from collections.abc import Callable
from functools import partial

from isthmus.abi import Errno
from isthmus.actor.ask import Aside
from isthmus.actor.content import BinaryFile
from isthmus.actor.host_api.context import LOG_RECORD_NBYTES, Context
from isthmus.errors import GuestFault, InputExhausted
from isthmus.units import KIB

MAX_EMPTY_READS = 64
"""Reads at the end of the input, one after the other, after which a command is ended. Many ask
again for a line that was empty, and would do so for ever."""
_MAX_LINE_NBYTES = 64 * KIB
"""Bytes of a line on standard error after which it is logged as if it had ended."""
_LOOK_MS = 50
"""Time between two looks at whether the message is to end."""


class Stdio:
    """See the module. Used on the thread that drives the guest."""

    def __init__(self, context: Context) -> None:
        self._c = context
        self._at = 0
        """Bytes of the message that were read."""
        self._n_empty = 0
        """Reads of nothing since the last one that gave something."""
        self._line = b""
        """What was written to standard error since the last end of a line."""

    def read(self, nbytes: int) -> bytes | Aside[bytes]:
        """At most so many bytes; none at the end. InputExhausted if it was there too often."""
        message = self._c.message
        if message.file is None:
            data = message.data[self._at : self._at + nbytes]
            self._at += len(data)
            return self._counted(data)
        self.flush()
        work = partial(_read, message.file, nbytes, message.check)
        return Aside(message, lambda: self._counted(work()), blocks=True)

    def write(self, stream: int, data: bytes) -> None:
        """Takes what the guest writes to standard output (1) or standard error (2)."""
        c = self._c
        if stream == 1:
            c.spend_output(len(data))
            c.message.emit(data)
            return
        c.spend_output(LOG_RECORD_NBYTES + len(data))
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            self._log(line)
        if len(self._line) > _MAX_LINE_NBYTES:
            self.flush()

    def flush(self) -> None:
        """Logs a line on standard error that has not ended."""
        line, self._line = self._line, b""
        if line:
            self._log(line)

    def _log(self, line: bytes) -> None:
        self._c.log(logging.WARNING, line.decode(errors="replace"))

    def _counted(self, data: bytes) -> bytes:
        self._n_empty = 0 if data else self._n_empty + 1
        if self._n_empty > MAX_EMPTY_READS:
            raise InputExhausted(
                f"{self._c.message.guest} reads on at the end of its input: give the prompt as an "
                "argument, or more input"
            )
        return data


def _read(file: BinaryFile, nbytes: int, check: Callable[[], None]) -> bytes:
    """At most so many bytes of a file. `check` is called while there are none, and may raise."""
    try:
        descriptor = file.fileno()
    except OSError:  # a file in memory
        return file.read(nbytes)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    try:
        while not poll.poll(_LOOK_MS):
            check()
        return os.read(descriptor, nbytes)
    except OSError:  # a folder, a terminal of somebody else's
        raise GuestFault(Errno.EIO) from None
