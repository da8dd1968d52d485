"""One run of a program: what goes in, what comes out, and its end with all that it has started.

The program has a process group of its own, which is killed whole when the program ends, takes too
long, says too much, or nobody wants its answer any more. A process that leaves the group by itself
(`setsid`) lives on: only the system's own means, such as a container, hold those.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from isthmus.errors import ToolFailed
from isthmus.tools.tool import Check, ToolLimits, require_short, too_late
from isthmus.tools.waiting import LOOK_S
from isthmus.units import KIB

_PART_NBYTES = 64 * KIB
"""Bytes that are read or written at a time: what a pipe holds."""
_KEPT_ERROR_NBYTES = 4 * KIB
"""Bytes of standard error that are kept: the last ones."""


@dataclass(frozen=True, slots=True)
class Program:
    """What is run: its own words, without a shell between them."""

    argv: Sequence[str]
    folder: Path | None = None
    """Where it runs; None for where this process does."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables beside those of this process."""

    def start(self) -> subprocess.Popen[bytes]:
        """A process of it, with pipes, in a group of its own. ToolFailed."""
        try:
            return subprocess.Popen(
                self.argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=self.folder,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            said = getattr(error, "strerror", None) or error
            raise ToolFailed(f"{self.argv[0]} cannot be run: {said}") from None


@dataclass(frozen=True, slots=True)
class Ended:
    """What came of a run."""

    status: int
    """The exit status; negative for the signal that ended it."""
    output: bytes
    said: str
    """The end of what it wrote to standard error."""


def run_program(program: Program, data: bytes, limits: ToolLimits, check: Check) -> Ended:
    """Runs a program on what it reads from standard input. Raises ToolFailed, or as `check`."""
    process = program.start()
    with contextlib.closing(_Run(process, data, limits)) as run:
        end = time.monotonic() + limits.deadline_s
        while not run.is_over:
            run.pass_on()
            check()
            if time.monotonic() >= end:
                raise too_late(limits)
        return run.ended()


class _Run:
    """A process and its pipes. Owns both: `close` kills what is left of the group."""

    def __init__(self, process: subprocess.Popen[bytes], data: bytes, limits: ToolLimits) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        self._left = memoryview(data)
        self._limits = limits
        self._output, self._error = bytearray(), bytearray()
        self._selector = selectors.DefaultSelector()
        for pipe in (process.stdin, process.stdout, process.stderr):
            os.set_blocking(pipe.fileno(), False)
        if data:
            self._selector.register(process.stdin, selectors.EVENT_WRITE)
        else:
            process.stdin.close()
        self._selector.register(process.stdout, selectors.EVENT_READ)
        self._selector.register(process.stderr, selectors.EVENT_READ)

    @property
    def is_over(self) -> bool:
        """Whether the program has ended: others that it left may hold its pipes for ever."""
        return self._process.poll() is not None

    def pass_on(self, timeout_s: float = LOOK_S) -> bool:
        """Passes on what the pipes take and have, and says whether they had anything."""
        if not self._selector.get_map():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_s)
            return False
        ready = self._selector.select(timeout_s)
        for key, _ in ready:
            if key.fileobj is self._process.stdin:
                self._write()
            else:
                self._read(key.fileobj, key.fd)
        return bool(ready)

    def ended(self) -> Ended:
        """What came of it, with what the pipes still have."""
        self._kill()
        if self._process.stdin in [it.fileobj for it in self._selector.get_map().values()]:
            self._drop(self._process.stdin)
        while self._selector.get_map() and self.pass_on(0.0):
            pass
        said = bytes(self._error).decode(errors="replace").strip()
        return Ended(self._process.returncode, bytes(self._output), said)

    def close(self) -> None:
        """Ends all that is left of it."""
        self._kill()
        self._process.wait()
        self._selector.close()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            with contextlib.suppress(OSError):  # what was not written yet is for nobody
                pipe.close()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _write(self) -> None:
        assert self._process.stdin
        try:
            n = os.write(self._process.stdin.fileno(), self._left[:_PART_NBYTES])
        except BlockingIOError:
            return
        except BrokenPipeError:  # it reads no more, which is its own affair
            n = len(self._left)
        self._left = self._left[n:]
        if not self._left:
            self._drop(self._process.stdin)

    def _read(self, pipe: object, fd: int) -> None:
        try:
            data = os.read(fd, _PART_NBYTES)
        except BlockingIOError:
            return
        if not data:
            self._drop(pipe)
        elif pipe is self._process.stdout:
            self._output += data
            require_short(len(self._output), self._limits)
        else:
            self._error = (self._error + data[-_KEPT_ERROR_NBYTES:])[-_KEPT_ERROR_NBYTES:]

    def _drop(self, pipe: object) -> None:
        self._selector.unregister(pipe)  # type: ignore[arg-type]
        with contextlib.suppress(OSError):
            pipe.close()  # type: ignore[attr-defined]
