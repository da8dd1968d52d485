"""What an emulated machine does after it has started (tools/fetch_arm64.py): its commands, in turn.

`commands.json` in the folder given maps names to arguments of Python; for each command NAME.json
says what it printed, how it ended and how long it took.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path


def main(folder: Path) -> None:
    """Runs every command, whether or not those before it went well."""
    commands: dict[str, list[str]] = json.loads((folder / "commands.json").read_text())
    for name, arguments in commands.items():
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd="/sources",
            capture_output=True,
            text=True,
            check=False,
        )
        said = {
            "status": done.returncode,
            "seconds": round(time.monotonic() - began, 1),
            "stdout": done.stdout,
            "stderr": done.stderr,
        }
        (folder / f"{name}.json").write_text(json.dumps(said))
        print(f"{name}: status {done.returncode} after {said['seconds']} s", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
