"""arm64 without such a machine: `make test-arm64` fetches an emulated one (tools/fetch_arm64.py).

With pages of 4 KiB, and of 16 KiB as on Apple Silicon, which `fake_pages.c` stands in for.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_gguf import TinyLlama

ROOT = Path(__file__).parents[2]
MACHINE = ROOT / ".arm64"
UNITS = ("region", "image", "memory_creator", "machine", "macos")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not (MACHINE / "python16").exists(), reason="run: make test-arm64"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="snapshots are moved from x86"),
]
pages = pytest.mark.parametrize("python", ["python", "python16"])


def run(python: str, *arguments: object) -> str:
    """What a Python of the emulated machine prints; or, with `here`, that of this one."""
    executable = sys.executable if python == "here" else MACHINE / python
    done = subprocess.run(
        [executable, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def exercise(python: str, *arguments: object) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(run(python, "-m", "tests.device.arm64_exercise", *arguments))
    return said


@pages
def test_memory(python: str) -> None:
    files = (f"tests/unit/test_{name}.py" for name in UNITS)
    assert " passed" in run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files)


@pages
def test_zero_copy(python: str) -> None:
    options = ("--json", "--device", "cpu", "--threads", "1", "--repeats", "1")
    report = json.loads(run(python, "-m", "isthmus", "verify", *options, "--sizes", "64KiB"))
    [proof] = report["results"]
    assert proof["holds"]
    assert proof["wrong"] == 0 < proof["checked"]
    assert report["machine"]["system"].endswith("aarch64")


def test_snapshots_move_there_and_back(tmp_path: Path) -> None:
    """From x86 to arm64 with pages of 16 KiB, to those of 4 KiB, and back."""
    model = TinyLlama(with_tokenizer=True).write(tmp_path / "x.gguf")
    saved = exercise("here", "save", model, tmp_path / "x86.safetensors")
    there = exercise("python16", "save", model, tmp_path / "arm64.safetensors")
    assert (there["machine"], there["os_page"]) == ("aarch64", 16384)
    for python, name, was in (
        ("python16", "x86", saved),
        ("python", "x86", saved),
        ("python", "arm64", there),
        ("here", "arm64", there),
    ):
        found = exercise(python, "restore", model, tmp_path / f"{name}.safetensors")
        assert found["digest"] == was["digest"], (python, name)
        if found["machine"] != was["machine"]:
            assert found["level"] == "state-exact"
            assert found["not_exact"]
        assert len(found["text"].split()) == 8
