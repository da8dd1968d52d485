"""The notebooks of docs/, run as they stand: they show what is committed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "first-agent.ipynb"


def test_notebooks_show_what_they_say() -> None:
    command = [sys.executable, str(ROOT / "tools" / "run_notebooks.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def test_every_cell_ran_in_order_and_without_an_error() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    cells = [it for it in notebook.cells if it.cell_type == "code"]
    assert [it.execution_count for it in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for it in cells for output in it.outputs]
    assert {it.output_type for it in outputs} == {"stream", "execute_result"}
    shown = "".join(str(it.get("text") or it.get("data")) for it in outputs)
    for words in ("neck of land", "tokens_out", "(deadline_s)", "weather", "True", "exact"):
        assert words in shown
    for cell in notebook.cells:
        for _, _, rest in (it.partition("](") for it in cell.source.split("[")[1:]):
            if target := rest.partition(")")[0]:
                assert (NOTEBOOK.parent / target).exists(), target
