"""Jobs in a process of their own: results, and every way in which one can end."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from isthmus.errors import Cancelled
from isthmus.trial import Ending, Outcome, TrialLimits, try_out
from isthmus.units import MIB

_LIMITS = TrialLimits(cpu_s=1, memory_nbytes=64 * MIB)
_SCRIPT = """\
import ctypes, os, sys

NICENESS_AT_IMPORT = os.nice(0)

def niceness(job):
    return f"{NICENESS_AT_IMPORT} {os.nice(0)}".encode()

def hide(job):
    os.closerange(3, 64)
    spin(job)

def double(job):
    print("this is not the result")
    return job * 2

def spin(job):
    if job:
        with open(job, "w") as file:
            file.write(str(os.getpid()))
    while True:
        pass

def fill(job):
    return bytes(1 << 30)

def recurse(job):
    sys.setrecursionlimit(1 << 30)
    def deeper(n):
        return [deeper(n + 1)]
    deeper(0)

def fail(job):
    raise ValueError("no")

def talk(job):
    while True:
        sys.stderr.write("words " * 10_000)

def end(job):
    os.abort()

def crash(job):
    ctypes.string_at(0)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(_SCRIPT)
    return path


def test_a_result_comes_back_whole(script: Path) -> None:
    job = bytes(range(256)) * 1000
    assert try_out(script, "double", job, _LIMITS) == Outcome(Ending.DONE, job * 2)


def test_packages_are_imported_whole_if_that_is_asked_for(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("version = b'7'\n")
    script = package / "script.py"
    script.write_text(
        "import package\ndef version(job):\n    return getattr(package, 'version', b'none')\n"
    )
    assert try_out(script, "version", b"", _LIMITS).result == b"none"
    assert try_out(script, "version", b"", _LIMITS, whole=True).result == b"7"


def test_the_last_words_of_a_child_are_kept(script: Path) -> None:
    assert try_out(script, "fail", b"", _LIMITS).said.endswith("ValueError: no\n")
    talkative = replace(_LIMITS, result_nbytes=1 << 16)
    assert 0 < len(try_out(script, "talk", b"", talkative).said) <= 4096


def test_a_child_has_a_low_priority_from_its_imports_on(script: Path) -> None:
    outcome = try_out(script, "niceness", b"", _LIMITS)
    least = os.nice(0)
    assert [int(it) > least or least == 19 for it in outcome.result.split()] == [True, True]


@pytest.mark.parametrize("function", ["fill", "recurse", "fail", "end", "crash"])
def test_a_crash_is_an_ending(script: Path, function: str) -> None:
    assert try_out(script, function, b"", _LIMITS).ending is Ending.CRASHED


@pytest.mark.slow
def test_endless_work_runs_out_of_time(script: Path) -> None:
    assert try_out(script, "spin", b"", _LIMITS).ending is Ending.OUT_OF_TIME


def test_a_result_that_is_too_long_is_none(script: Path) -> None:
    limits = replace(_LIMITS, result_nbytes=10)
    assert try_out(script, "double", b"a" * 6, limits) == Outcome(Ending.CRASHED)


def test_a_busy_machine_is_told_apart(script: Path) -> None:
    assert try_out(script, "spin", b"", replace(_LIMITS, wall_s=0.1)).ending is Ending.BUSY


def test_a_child_that_closes_its_files_has_not_ended(script: Path) -> None:
    """It would be killed, and be said to be out of time."""
    assert try_out(script, "hide", b"", replace(_LIMITS, wall_s=0.5)).ending is Ending.BUSY


@pytest.mark.skipif(sys.platform != "linux", reason="counts of one thread are Linux's")
def test_whoever_waits_sleeps(script: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    assert try_out(script, "spin", b"", replace(_LIMITS, wall_s=1.0)).ending is Ending.BUSY
    assert resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before < 100


def test_whoever_waits_may_leave(script: Path) -> None:
    end = time.monotonic() + 0.2

    def check() -> None:
        if time.monotonic() > end:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        try_out(script, "spin", b"", replace(_LIMITS, cpu_s=60), check)


@pytest.mark.slow
def test_a_job_ends_with_a_process_that_is_killed(script: Path, tmp_path: Path) -> None:
    told = tmp_path / "pid"
    code = (
        "from pathlib import Path\nfrom isthmus.trial import TrialLimits, try_out\n"
        f"try_out(Path({str(script)!r}), 'spin', {str(told).encode()!r}, TrialLimits(60, 1 << 26))"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        try:
            wait_until(lambda: told.exists() and told.read_text() != "")
            pid = int(told.read_text())
            assert is_running(pid)
        finally:
            process.kill()
    wait_until(lambda: not is_running(pid))


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether a process is there that has not ended: nobody may have waited for it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_many_jobs_take_turns(script: Path) -> None:
    endings: list[Outcome] = []
    threads = [
        threading.Thread(target=lambda: endings.append(try_out(script, "double", b"a", _LIMITS)))
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert endings == [Outcome(Ending.DONE, b"aa")] * 12
