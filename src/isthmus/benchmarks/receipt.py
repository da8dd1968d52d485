"""What was seen of one device, as a file for programs and one for people.

::

    {commands, commit, version, machine, devices, verify, memory,
     models: {name: {question: report}}}

A report is what a command of `isthmus` prints as JSON, and the `seconds` that it took; `failed` has
the last words of one that ended badly or was cut off.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from isthmus.benchmarks.record import Record, commit
from isthmus.paths import expanded
from isthmus.printable import printable
from isthmus.version import VERSION

FIGURES = {
    "verify": ("nbytes", "holds", "pointer_identity", "bytes_copied", "ratio", "wrong", "checked"),
    "memory": (
        "mib",
        "ratio",
        "guest_gb_per_s",
        "plain_gb_per_s",
        "heap_gb_per_s",
        "move_to_device_ms",
        "first_touch_by_guest_ms",
    ),
    "decode": (
        "context",
        "ratio",
        "ours_tokens_per_s",
        "llama_cpp_tokens_per_s",
        "logits_relative_error",
        "equal_greedy_tokens",
        "bytes_copied",
    ),
    "prefill": (
        "tokens",
        "ratio",
        "ours_tokens_per_s",
        "llama_cpp_tokens_per_s",
        "logits_relative_error",
    ),
    "agents": ("agents", "ratio", "ours_tokens_per_s", "llama_cpp_tokens_per_s", "identical"),
    "agents, alone": ("agents", "ratio", "ours_tokens_per_s", "identical"),
    "agents, few": ("agents", "ratio", "ours_tokens_per_s", "identical"),
    "agents, inexact": ("agents", "ratio", "ours_tokens_per_s", "identical"),
    "snapshot": (
        "tokens",
        "faster_than_prefill",
        "restore_to_next_token_ms",
        "prefill_again_ms",
        "save_ms",
        "first_fork_ms",
        "fork_ms",
        "identical",
    ),
}
"""The columns of each question's table."""
_MAX = 2000
"""Characters of the last words of a command."""


class Receipt:
    """Owns OUT.json and OUT.md, which are written anew after each answer."""

    def __init__(self, out: Path, seconds: float) -> None:
        """Goes on with what OUT.json has of the same commit on this machine. Commands may take
        `seconds` together."""
        self.json, self.markdown = (out.with_name(out.name + end) for end in (".json", ".md"))
        self.record = self._begun()
        self.record["commands"].append(" ".join(["isthmus", *sys.argv[1:]]))
        self._end = time.monotonic() + seconds

    def ask(self, place: dict[str, Any], question: str, arguments: Sequence[str]) -> Record:
        """Runs a command of isthmus, and puts what it says in `place`."""
        left = self._end - time.monotonic()
        place[question] = isthmus(arguments, left) if left > 1 else {"failed": "no time was left"}
        self.write()
        report: Record = place[question]
        return report

    @property
    def failures(self) -> list[str]:
        """What was not answered, or wrongly."""
        return [name for name, report in self._reports() if "failed" in report]

    def write(self) -> None:
        """Writes both files, without names of folders: they tell nobody else anything."""
        text = _without_folders(json.dumps(self.record, indent=1))
        self.json.parent.mkdir(parents=True, exist_ok=True)
        self.json.write_text(text + "\n")
        self.markdown.write_text(as_markdown(json.loads(text)))

    def _begun(self) -> Record:
        machine = {"system": platform.platform(), "processors": os.cpu_count()}
        now = {"commit": commit(), "version": VERSION, "machine": machine}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            known: Record = json.loads(self.json.read_text())
            if {name: known[name] for name in now} == now and known["commands"]:
                return known
        return {"commands": [], **now, "devices": {}, "models": {}}

    def _reports(self) -> Iterator[tuple[str, Record]]:
        for name in ("devices", "verify", "memory"):
            if name in self.record:
                yield name, self.record[name]
        for reports in self.record["models"].values():
            yield from reports.items()


def isthmus(arguments: Sequence[str], seconds: float) -> Record:
    """What a command prints as JSON; with `failed` if it ended badly, or took longer."""
    begin = time.monotonic()
    command = [sys.executable, "-m", "isthmus", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"it took more than the {seconds:.0f} s that were left"}
    said = printable(done.stderr.strip()[-_MAX:].rpartition("\n")[2])
    try:
        report: Record = json.loads(done.stdout)
    except json.JSONDecodeError:
        return {"failed": said or "it said nothing", "exit_code": done.returncode}
    if done.returncode != 0:
        report["failed"] = said
    return {**report, "seconds": time.monotonic() - begin}


def as_markdown(record: Record) -> str:
    """A table for each question, and what was measured on what."""
    machine = record["machine"]
    lines = [*(f"`{command}`\n" for command in record["commands"])]
    lines.append(f"* isthmus {record.get('version', '')} at {record['commit']}")
    lines.append(f"* {machine['system']}, {machine['processors']} processors")
    for it in record["devices"].get("devices", []):
        lines.append(f"* {it['name']}: {it['description']}, shares as {it['sharing']}")
        lines += [f"    * {it[name]}" for name in ("driver", "library") if it.get(name)]
    lines += sorted({f"* measured on {it}" for it in _ways(record)})
    for question, names in FIGURES.items():
        found = {model: it[question] for model, it in record["models"].items() if question in it}
        if question in record:
            found = {"": record[question]}
        if found:
            lines += ["", f"## {question}", "", *_table(names, found)]
    return "\n".join(lines) + "\n"


def _ways(record: Record) -> Iterator[str]:
    """How the devices that were measured shared memory."""
    reports = [record.get("verify"), record.get("memory")]
    for it in record["models"].values():
        reports += it.values()
    for report in reports:
        if report and "sharing" in report:
            yield f"{report['device']}: {report['sharing']}, KV caches in {report['caches']} memory"


def _table(names: tuple[str, ...], found: dict[str, Record]) -> list[str]:
    """A row for each result of each model, and what failed."""
    lines = [f"| model | {' | '.join(names)} |", "| --- " * (len(names) + 1) + "|"]
    for model, report in found.items():
        for result in report.get("results", []):
            figures = " | ".join(_shown(result.get(name)) for name in names)
            lines.append(f"| {model} | {figures} |")
        if failed := report.get("failed"):
            lines.append(f"| {model} | {failed} |")
    return lines


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _without_folders(text: str) -> str:
    home = json.dumps(f"{expanded('~')}/")[1:-1]
    return re.sub(r'(?<=[ ="\'])/(?:[^ /"\']+/)+', "", text.replace(home, ""))
