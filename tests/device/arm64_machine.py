"""A whole arm64 machine, started once for a list of commands (tools/fetch_arm64.py)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_SECONDS = 3600


@dataclass(frozen=True)
class Done:
    """What one command of the machine printed, and how it ended."""

    status: int
    seconds: float
    stdout: str
    stderr: str

    def text(self) -> str:
        """What it printed, if it ended well."""
        assert self.status == 0, self.stdout[-3000:] + self.stderr[-3000:]
        return self.stdout

    def json(self) -> Any:
        """The object that it printed."""
        return json.loads(self.text())


def run_machine(machine: Path, folder: Path, commands: Mapping[str, str]) -> dict[str, Done]:
    """Results of commands of Python, by name; the machine sees `folder` as /exchange."""
    split = {name: command.split() for name, command in commands.items()}
    (folder / "commands.json").write_text(json.dumps(split))
    started = subprocess.run(
        [machine, folder], capture_output=True, text=True, timeout=MAX_SECONDS, check=False
    )
    found = {name: folder / f"{name}.json" for name in commands}
    assert all(it.exists() for it in found.values()), started.stdout[-3000:] + started.stderr
    return {name: Done(**json.loads(it.read_text())) for name, it in found.items()}
