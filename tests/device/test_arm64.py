"""arm64 without such a machine: `make test-arm64` fetches emulated ones (tools/fetch_arm64.py).

Processes with pages of 4 KiB, and of 16 KiB as on Apple Silicon, which `fake_pages.c` stands in
for; and whole machines, whose kernels have such pages.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.device.arm64_machine import Done, run_machine
from tests.tiny_gguf import TinyLlama

ROOT = Path(__file__).parents[2]
MACHINE = ROOT / ".arm64"
UNITS = ("region", "image", "memory_creator", "machine", "macos")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not (MACHINE / "machine16").exists(), reason="run: make test-arm64"),
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
def test_memory(python: str, tmp_path: Path) -> None:
    files = (f"tests/unit/test_{name}.py" for name in UNITS)
    options = ("-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'inside'}")
    assert " passed" in run(python, "-m", "pytest", *options, *files)


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


KIB = {"machine4": 4, "machine16": 16}
"""Of a page, by machine."""


@dataclass(frozen=True)
class Visit:
    """What one whole machine did, with an agent that was saved here."""

    kib: int
    folder: Path
    saved: dict[str, Any]
    did: dict[str, Done]


@pytest.fixture(scope="module", params=KIB)
def visit(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, smollm2: Path
) -> Visit:
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    model = TinyLlama(with_tokenizer=True).write(folder / "x.gguf")
    saved = exercise("here", "save", model, folder / "x86.safetensors")
    shutil.copy(smollm2, folder / "smollm2.gguf")
    exercised = "-m tests.device.arm64_exercise"
    units = " ".join(f"tests/unit/test_{it}.py" for it in UNITS)
    cpu = "--device cpu --threads 2"
    commands = {
        "units": f"-m pytest -q -p no:cacheprovider {units}",
        "verify": f"-m isthmus verify --json {cpu} --repeats 1 --sizes 64KiB,512KiB",
        "restore": f"{exercised} restore /exchange/x.gguf /exchange/x86.safetensors",
        "save": f"{exercised} save /exchange/x.gguf /exchange/arm64.safetensors",
        "chat": "-m isthmus run chat --message Hello --arg max_tokens=8 --arg temperature=0 "
        f"--model /exchange/smollm2.gguf {cpu}",
        "receipt": f"-m isthmus receipt --quick {cpu} --minutes 40 "
        "--model /exchange/x.gguf --out /exchange/measured",
    }
    return Visit(KIB[name], folder, saved, run_machine(MACHINE / name, folder, commands))


def test_a_whole_machine_maps_memory(visit: Visit) -> None:
    assert " passed" in visit.did["units"].text()


def test_a_whole_machine_computes_in_place(visit: Visit) -> None:
    report = visit.did["verify"].json()
    assert report["machine"]["system"].endswith("aarch64")
    assert len(report["results"]) == 2
    for proof in report["results"]:
        assert proof["holds"]
        assert proof["wrong"] == 0 < proof["checked"]


def test_snapshots_move_to_a_whole_machine_and_back(visit: Visit) -> None:
    restored, there = visit.did["restore"].json(), visit.did["save"].json()
    assert restored["os_page"] == there["os_page"] == visit.kib << 10
    assert restored["digest"] == visit.saved["digest"]
    assert restored["level"] == "state-exact"
    assert restored["not_exact"]
    back = exercise("here", "restore", visit.folder / "x.gguf", visit.folder / "arm64.safetensors")
    assert back["digest"] == there["digest"]
    assert back["level"] == "state-exact"
    for it in (visit.saved, restored, there, back):
        assert it["text"] == visit.saved["text"]


def test_a_whole_machine_chats(visit: Visit) -> None:
    """As a process of arm64 does: another processor's kernels round otherwise."""
    options = "--message Hello --arg max_tokens=8 --arg temperature=0 --device cpu --threads 2"
    model = visit.folder / "smollm2.gguf"
    said = run("python", "-m", "isthmus", "run", "chat", *options.split(), "--model", model)
    assert len(said.split()) > 4
    assert visit.did["chat"].text() == said


def test_a_whole_machine_writes_a_receipt(visit: Visit) -> None:
    visit.did["receipt"].text()
    receipt = json.loads((visit.folder / "measured.json").read_text())
    assert receipt["machine"]["system"].endswith("aarch64")
    [(_, questions)] = receipt["models"].items()
    assert not [it for it in questions.values() if "failed" in it]
