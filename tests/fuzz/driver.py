"""Runs a surface's cases in a child process and watches its memory, its time and its end.

::

    python -m tests.fuzz.driver SURFACE CASE...     a seed, a corpus name, or @FILE

A child runs many cases in a row. When it dies, hangs or eats the machine, the case that it was at
is the finding, a new child goes on with the next one, and the input is made smaller.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.child import INPUT
from tests.fuzz.surface import Surface, surface_class

_POLL_S = 0.02
_START_S = 120.0
"""Seconds that a child may take to open its surface."""
_MAX_CASES = 150
"""Cases that one child runs: what they leave behind is theirs, and not a finding."""
_MAX_SHRINKS = 60
_TICKS = os.sysconf("SC_CLK_TCK")
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Finding:
    """A case that ended otherwise than it should."""

    surface: str
    case: str
    kind: str
    """A signal's name, `hang`, `memory`, or an exception and where it was raised."""
    text: str
    data: bytes

    def __str__(self) -> str:
        return (
            f"{self.surface}: case {self.case}: {self.kind}, an input of {len(self.data)} bytes\n"
            f"repeat: python -m tests.fuzz.driver {self.surface} {self.case}\n{self.text}"
        )


@dataclass
class Report:
    """What many cases came to."""

    outcomes: Counter[str] = field(default_factory=Counter)
    findings: dict[str, Finding] = field(default_factory=dict)
    """The smallest input of each kind."""

    def add(self, finding: Finding) -> None:
        """Keeps a finding if it is the smallest of its kind."""
        self.outcomes["FINDING"] += 1
        known = self.findings.get(finding.kind)
        if known is None or len(finding.data) < len(known.data):
            self.findings[finding.kind] = finding

    def keep(self, folder: Path) -> str:
        """Writes the inputs of all findings into a folder; says what they are."""
        lines = []
        for number, finding in enumerate(self.findings.values()):
            path = folder / f"{finding.surface}-{number}"
            path.write_bytes(finding.data)
            lines.append(f"{finding}\nits input: {path}")
        return "\n\n".join(lines)


class Child:
    """A process that runs cases of one surface, one at a time; it is started when needed."""

    def __init__(self, surface: str, folder: Path) -> None:
        self.surface = surface
        self.kind: type[Surface] = surface_class(surface)
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self._n_cases = 0
        self._unread = ""

    def run(self, case: str) -> str | Finding:
        """A case's outcome."""
        if self._n_cases >= _MAX_CASES:
            self.close()
        process = self._process or self._start()
        self._n_cases += 1
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            print(case, file=process.stdin, flush=True)
        answer, why = self._wait(process, self.kind.cpu_s, self.kind.wall_s)
        if answer is None:
            why = why or self._ending(process)
            text = self._log.read_text(errors="replace")[-4000:]
            answer = {"kind": why, "text": text}
            self._kill()
        if "outcome" in answer:
            return str(answer["outcome"])
        path = self._folder / INPUT
        data = path.read_bytes() if path.exists() else b""
        return Finding(self.surface, case, answer["kind"], answer["text"], data)

    def _start(self) -> subprocess.Popen[str]:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        self._log = self._folder / "log"
        with self._log.open("w") as log:
            process = self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.child", self.surface, str(self._folder)],
                cwd=_ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._n_cases, self._unread = 0, ""
        answer, why = self._wait(process, _START_S, _START_S)
        assert answer, f"{self.surface} did not open: {why}\n{self._log.read_text()}"
        return process

    def _wait(
        self, process: subprocess.Popen[str], cpu_s: float, wall_s: float
    ) -> tuple[dict[str, str] | None, str]:
        """The child's next line; or None, and why it was given up."""
        assert process.stdout is not None
        end, used = time.monotonic() + wall_s, _used(process.pid)[0]
        while not select.select([process.stdout], [], [], _POLL_S)[0]:
            seconds, nbytes = _used(process.pid)
            if nbytes > self.kind.memory_nbytes:
                return None, "memory"
            if seconds - used > cpu_s or time.monotonic() > end:
                return None, "hang"
        line = process.stdout.readline()
        return (json.loads(line), "") if line else (None, "")

    @staticmethod
    def _ending(process: subprocess.Popen[str]) -> str:
        code = process.wait(60)
        return signal.Signals(-code).name if code < 0 else f"exit {code}"

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with process:
                pass

    def close(self) -> None:
        """Lets the child end by itself; kills what is left of it."""
        process = self._process
        if process is not None and process.stdin is not None:
            process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
        self._kill()
        shutil.rmtree(self._folder, ignore_errors=True)


def _used(pid: int) -> tuple[float, int]:
    """Seconds of processor time and resident bytes of a process and its descendants.

    Zero where the system does not say: macOS.
    """
    seconds, nbytes = 0.0, 0
    for each in _family(pid):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            seconds += sum(int(it) for it in fields[11:15]) / _TICKS
            nbytes += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    return seconds, nbytes


def _family(pid: int) -> Iterator[int]:
    yield pid
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in path.read_text().split():
                yield from _family(int(child))


def hunt(child: Child, cases: Iterable[str], report: Report) -> None:
    """Runs cases and makes the inputs of new findings smaller."""
    for case in cases:
        found = child.run(case)
        if isinstance(found, str):
            report.outcomes[found] += 1
        else:
            known = found.kind in report.findings
            report.add(found if known else shrink(child, found))


def shrink(child: Child, found: Finding) -> Finding:
    """A smaller input that fails in the same way, if the surface knows how to make one."""
    with tempfile.TemporaryDirectory() as folder:
        surface = _unopened(child.kind)
        path, tries = Path(folder) / "smaller", itertools.count()
        smaller = True
        while smaller:
            smaller = False
            for data in surface.smaller(found.data):
                if next(tries) >= _MAX_SHRINKS:
                    return found
                path.write_bytes(data)
                again = child.run(f"@{path}")
                if isinstance(again, Finding) and again.kind == found.kind:
                    found = Finding(found.surface, found.case, found.kind, again.text, data)
                    smaller = True
                    break
    return found


def _unopened(kind: type[Surface]) -> Surface:
    """A surface for `smaller` alone, which needs nothing that is open."""
    return kind.__new__(kind)


def main(surface: str, *cases: str) -> None:
    """Runs cases and prints what came of each."""
    with tempfile.TemporaryDirectory() as folder:
        child = Child(surface, Path(folder) / "child")
        for case in cases or child.kind.corpus:
            print(f"{case}: {child.run(case)}", flush=True)
        child.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
