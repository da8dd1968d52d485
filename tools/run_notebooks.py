"""Runs the notebooks of docs/ and writes what they print into them; `--check` only compares.

They use a scripted model, so that what they print is the same on every machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

DOCS = Path(__file__).parents[1] / "docs"
TIMEOUT_S = 300


def run(path: Path) -> Any:
    """A notebook, run by a kernel of its own in a folder of its own, with its outputs."""
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory() as folder:
        where = {"metadata": {"path": folder}}
        how: dict[str, Any] = {"timeout": TIMEOUT_S, "coalesce_streams": True, "resources": where}
        NotebookClient(notebook, kernel_name="python3", **how).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran
        for output in cell.get("outputs", ()):
            if "text/markdown" in output.get("data", {}):
                output.data.pop("text/plain", None)  # tells how long it took
    notebook.metadata.pop("language_info", None)  # which Python ran it
    return notebook


def outputs(notebook: Any) -> list[Any]:
    """What each cell of code shows."""
    return [it.outputs for it in notebook.cells if it.cell_type == "code"]


def main() -> int:
    """Returns 1 if `--check` finds a notebook that shows something else than it says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    only_check = parser.parse_args().check
    stale = []
    for path in sorted(DOCS.glob("*.ipynb")):
        before = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
        now = run(path)
        if not only_check:
            nbformat.write(now, path)  # type: ignore[no-untyped-call]
        elif outputs(before) != outputs(now):
            stale.append(path)
    for path in stale:
        print(f"{path} shows something else: run python tools/run_notebooks.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
