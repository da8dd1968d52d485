"""Jobs that a process of their own does, with limits of time, memory and stack.

A file, a grammar or a module from a stranger may crash the library that reads it, or keep that
library busy for ever. So such input is tried in a child process first. Only what the child survives
is used here, and the child's result may spare this process the work (`Outcome.result`).

A job is a function in a script of this package: bytes in, bytes out. The child runs at low
priority. It is this file, run as a script, so this module imports nothing of the package.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

_AT_A_TIME = max(2, (os.cpu_count() or 1) // 2)
"""Children that run at the same time; further jobs wait."""
_CHECK_S = 0.1
"""Seconds between two looks at whether somebody who waits for a child is still to wait."""
_OUT_OF_TIME = (-signal.SIGXCPU, -signal.SIGKILL)
_NICENESS = 10
"""Niceness of a child from its first line on: most of a short job's time goes to imports. While all
processors are busy, a child gets a tenth of what a busy thread gets."""
_SAID_NBYTES = 4096
"""Bytes that are kept of what a child said, from its end."""
_PR_SET_PDEATHSIG = 1
"""prctl(2): a signal for when the process that waits for the job was killed."""
_CHILD = f"""\
import os
os.nice({_NICENESS})
import json, sys
head = json.loads(sys.stdin.buffer.readline())
sys.path[:] = head["path"]
import runpy
runpy.run_path(head["trial"])["_serve"](head)
"""

_places = threading.BoundedSemaphore(_AT_A_TIME)


@dataclass(frozen=True)
class TrialLimits:
    """What one job may use."""

    cpu_s: int
    """Seconds of processor time, after the script was imported."""
    memory_nbytes: int
    """Bytes of address space beyond what the interpreter and the script's imports take."""
    stack_nbytes: int = 1 << 20
    """Bytes of the native stack that the job runs on."""
    result_nbytes: int = 1 << 20
    """Bytes of the longest result."""
    wall_s: float = 120.0
    """Seconds until a job is given up, for machines that are too busy to run it."""


class Ending(enum.Enum):
    """How a job ended."""

    DONE = "done"
    OUT_OF_TIME = "out of time"
    """It used up its processor time."""
    CRASHED = "crashed"
    """It raised, ran out of memory or stack, or a library ended the process."""
    BUSY = "busy"
    """The machine was too busy to run it; another try may succeed."""


@dataclass(frozen=True)
class Outcome:
    """A job's end, and its result, which is empty unless the job is DONE."""

    ending: Ending
    result: bytes = b""
    said: str = field(default="", compare=False)
    """The end of what the child wrote to standard error: a stranger may have chosen the words."""


def _nothing() -> None:
    pass


def try_out(
    script: Path,
    function: str,
    job: bytes,
    limits: TrialLimits,
    check: Callable[[], None] = _nothing,
    prepare: str = "",
    *,
    whole: bool = False,
) -> Outcome:
    """Runs `function(job)` of a script in a child process and waits for its end.

    With `prepare`, the child first runs the script's `prepare(prepare)`, without limits: for what
    is not the stranger's, such as a library that the job uses. `check` is called while this waits,
    and may raise: the child is then killed. `whole`: the packages that the script lies in are
    imported with what their `__init__.py` does. Raises OSError if no process can be started.
    """
    end = time.monotonic() + limits.wall_s
    while not _places.acquire(timeout=_CHECK_S):
        check()
        if time.monotonic() > end:
            return Outcome(Ending.BUSY)
    try:
        return _run(_head(script, function, limits, prepare, whole) + job, end, check)
    finally:
        _places.release()


def _head(script: Path, function: str, limits: TrialLimits, prepare: str, whole: bool) -> bytes:
    head = {
        "path": sys.path,
        "trial": __file__,
        "script": str(script),
        "function": function,
        "limits": asdict(limits),
        "prepare": prepare,
        "whole": whole,
        "parent": os.getpid(),
    }
    return json.dumps(head).encode() + b"\n"


def _run(given: bytes, end: float, check: Callable[[], None]) -> Outcome:
    with (
        tempfile.TemporaryFile() as stdin,
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
    ):
        stdin.write(given)
        stdin.seek(0)
        alive, held = os.pipe()
        with open(alive, "rb"), open(held, "wb") as held_here:
            process = subprocess.Popen(
                [sys.executable, "-I", "-c", _CHILD],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=(held,),
            )
            held_here.close()
            with process:
                try:
                    in_time = _wait(process, alive, end, check)
                finally:
                    process.kill()
        said = _end_of(stderr)
        if not in_time:
            return Outcome(Ending.BUSY, said=said)
        if process.returncode == 0:
            stdout.seek(0)
            return Outcome(Ending.DONE, stdout.read(), said)
    killed = process.returncode in _OUT_OF_TIME
    return Outcome(Ending.OUT_OF_TIME if killed else Ending.CRASHED, said=said)


def _end_of(file: IO[bytes]) -> str:
    length = file.seek(0, os.SEEK_END)
    file.seek(max(0, length - _SAID_NBYTES))
    return file.read().decode(errors="replace")


def _wait(
    process: subprocess.Popen[bytes], alive: int, end: float, check: Callable[[], None]
) -> bool:
    """Waits for the child; false if it is still running at `end`.

    `alive` is a pipe whose other end the child holds until it ends. So this thread sleeps until
    then: `Popen.wait` with a timeout looks some hundred times a second.
    """
    pipe = select.poll()
    pipe.register(alive)
    while (left := end - time.monotonic()) > 0:
        check()
        if pipe.poll(1000 * min(left, _CHECK_S)):  # it has ended but for its last microseconds
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_CHECK_S)
        if process.poll() is not None:
            return True
    return False


# ---------------------------------------------------------------------------------- in the child


def _serve(head: dict[str, Any]) -> None:
    """Reads the job from standard input and writes its result to standard output.

    Ends the process: with 0 if the job is done, with 1 if it raised.
    """
    job = sys.stdin.buffer.read()
    out = os.dup(1)
    os.dup2(2, 1)  # a library that prints does not write into the result
    script = _module(Path(head["script"]), whole=head["whole"])
    run = getattr(script, head["function"])
    if head["prepare"]:
        script.prepare(head["prepare"])
    limits = TrialLimits(**head["limits"])
    _limit(limits, head["parent"])
    threading.stack_size(limits.stack_nbytes)
    results: list[bytes] = []
    thread = threading.Thread(target=lambda: results.append(run(job)))
    thread.start()
    thread.join()
    for result in results:
        view = memoryview(result)
        while view:
            view = view[os.write(out, view) :]
    os._exit(0 if results else 1)


def _module(script: Path, *, whole: bool) -> Any:
    """A script as the module that it is. Unless `whole`, its packages are there without what their
    `__init__.py` imports, which would take longer than most jobs.
    """
    names, folder = [script.stem], script.parent
    while (folder / "__init__.py").exists():
        names, folder = [folder.name, *names], folder.parent
    path = folder
    for i in range(1, 1 if whole else len(names)):
        path /= names[i - 1]
        package = types.ModuleType(".".join(names[:i]))
        package.__path__ = [str(path)]
        sys.modules[package.__name__] = package
    sys.path.insert(0, str(folder))  # the folder of the outermost package, or the script's
    return importlib.import_module(".".join(names))


def _limit(limits: TrialLimits, parent: int) -> None:
    with contextlib.suppress(AttributeError):  # macOS: it ends by its processor time
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # if the machine's memory ends, this process goes first
    used = time.process_time()
    cpu_s = limits.cpu_s + int(used) + 1
    for what, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, limits.result_nbytes),
        (resource.RLIMIT_AS, _address_space_nbytes() + limits.memory_nbytes),
    ):
        with contextlib.suppress(ValueError, OSError):  # macOS has no limit of addresses
            resource.setrlimit(what, (most, most))


def _address_space_nbytes() -> int:
    """Bytes of addresses that this process has now."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # macOS
        return 0
