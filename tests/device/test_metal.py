"""Metal without a Mac: see `stand_in.py`. What a GPU passes it passes, and it catches mistakes.

Each process here has pages of 16 KiB, no /proc, and a device `metal:0` with the processor's
kernels. Mistakes are made in copies of our code.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import isthmus
from isthmus.native.loader import open_library
from tests.device.stand_in import build
from tests.tiny_gguf import TinyLlama

PACKAGE = Path(isthmus.__file__).parent
ROOT = Path(__file__).parents[2]
SHORT = (
    "shares_in_place or (libllama and (qwen3 or 24)) or segments or among_others or forked "
    "or between or copies_give or where_it_lies or not_there or two_runtimes"
)
"""Tests of test_gpu.py, one of each kind; `make test-metal` runs all of them."""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="fake_pages.c is written for Linux"),
    pytest.mark.skipif(
        not open_library().version.startswith("0.26."), reason="fake_metal.c has ggml 0.26"
    ),
]


@pytest.fixture(scope="module")
def mac(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process on the stand-in."""
    return {**os.environ, **build(tmp_path_factory.mktemp("metal"))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `metal_exercise.py` needs."""
    folder = tmp_path_factory.mktemp("exercise")
    TinyLlama(with_tokenizer=True, quantisation="F16", head_dim=32).write(folder / "x.gguf")
    return folder


def run(
    mac: dict[str, str], *command: object, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)],
        env={**mac, **variables},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def exercise(mac: dict[str, str], folder: Path, **variables: str) -> tuple[int, str]:
    """The exit status of the exercise, and what it wrote to standard error."""
    done = run(mac, ROOT / "tests/device/metal_exercise.py", folder, **variables)
    assert (done.returncode == 0) == (done.stdout == "done\n"), done.stdout + done.stderr
    return done.returncode, done.stderr


def passes(mac: dict[str, str], *arguments: object) -> None:
    """Runs tests on the stand-in."""
    done = run(mac, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_what_a_gpu_passes(mac: dict[str, str]) -> None:
    passes(mac, "-m", "gpu", ROOT / "tests/device/test_gpu.py", "-k", SHORT)


@pytest.mark.long
def test_all_that_a_gpu_passes(mac: dict[str, str]) -> None:
    passes(mac, "-m", "gpu", ROOT / "tests/device/test_gpu.py", "-k", f"not ({SHORT})")


@pytest.mark.long
def test_memory_with_pages_of_16_kib(mac: dict[str, str]) -> None:
    names = ("region", "image", "memory_creator")
    passes(mac, *(ROOT / f"tests/unit/test_{name}.py" for name in names))


# ------------------------------------------------------------------ bad input


def isthmus_said(mac: dict[str, str], *arguments: str, **variables: str) -> str:
    done = run(mac, "-m", "isthmus", *arguments, **variables)
    assert done.returncode > 0, done.stdout + done.stderr
    return done.stderr


def test_a_virtual_mac_without_a_gpu(mac: dict[str, str]) -> None:
    said = isthmus_said(mac, "verify", "--device", "metal", FAKE_METAL_DEVICES="0")
    assert "no metal device" in said
    assert "virtual Macs often give their guests no GPU" in said


@pytest.mark.long
def test_memory_larger_than_the_longest_buffer_has_several(
    mac: dict[str, str], folder: Path
) -> None:
    assert exercise(mac, folder, **SMALL) == (0, "")


def test_a_matrix_larger_than_the_longest_buffer(mac: dict[str, str]) -> None:
    said = isthmus_said(mac, "verify", "--device", "metal", "--sizes", "1MiB", **SMALL)
    assert said.startswith("isthmus: the device addresses at most 512.0 KiB at once; a tensor has")


def test_too_little_memory_for_a_buffer(mac: dict[str, str], folder: Path) -> None:
    """ggml's Metal gives a buffer that is none; it is neither used nor freed."""
    status, said = exercise(mac, folder, FAKE_METAL_MEMORY=str(1 << 17))
    assert status == 1
    assert "refused to address 224.0 KiB of the process's memory in place: metal: error" in said
    assert "breach" not in said


# ------------------------------------------------------------------ mistakes


@dataclass(frozen=True)
class Mistake:
    """Words of our code that are replaced, by file, and what is said of it."""

    name: str
    said: str
    edits: dict[str, tuple[str, str]]
    variables: dict[str, str] = field(default_factory=dict)


BUFFER = "device/buffer.py"
NOBODY_WAITS = {
    "device/base.py": ("ggml_backend_graph_compute\n", "ggml_backend_graph_compute_async\n"),
    "native/_ggml.py": ('"ggml_backend_graph_compute":', '"ggml_backend_graph_compute_async":'),
}
PROTECT = "__import__('isthmus.native.libc', fromlist=['commit']).commit(self.memory.base, OS_PAGE)"
SMALL = {"FAKE_METAL_LONGEST": str(1 << 19)}
MISTAKES = [
    Mistake(
        "a length that is not whole pages",
        "not whole pages of 16 KiB",
        {BUFFER: ("return memory.mapped_nbytes if", "return memory.nbytes if")},
    ),
    Mistake(
        "a start that is not a page's",
        "not whole pages of 16 KiB",
        {BUFFER: ("page = HostAddr(host // OS_PAGE * OS_PAGE)", "page = host")},
        SMALL,
    ),
    Mistake(
        "pages of 4 KiB",
        "not whole pages of 16 KiB",
        {"units.py": ("OS_PAGE = mmap.PAGESIZE", "OS_PAGE = 4096")},
    ),
    Mistake(
        "a buffer that outlives its memory",
        "unmapped under a buffer that was not freed",
        {
            BUFFER: (
                "self._segments.pop()[1].close()",
                "self.__dict__.setdefault('late', []).append(self._segments.pop()[1])",
            )
        },
    ),
    Mistake(
        "memory that changes under a command",
        "protected while a command works in it",
        {**NOBODY_WAITS, BUFFER: ('"""Ends what `lend` began."""', PROTECT)},
    ),
    Mistake(
        "pages of an image in memory that a buffer is to be over",
        "not of one mapping",
        {"device/importing.py": ('return self.sharing == "copied"', "return True")},
    ),
    Mistake(
        "a tensor across the end of a buffer",
        "does not lie in its buffer",
        {BUFFER: ("if begin <= host and host + nbytes <= begin", "if begin <= host < begin")},
        SMALL,
    ),
    Mistake(
        "a buffer larger than the longest",
        "maxBufferLength is 524288",
        {"device/importing.py": ("largest=self.largest_buffer)", "largest=1 << 40)")},
        SMALL,
    ),
    Mistake(
        "a buffer over addresses that are only reserved",
        "not of one mapping",
        {
            BUFFER: (
                "self._largest is None:\n            return self.memory.reserved",
                "True:\n            return self.memory.reserved",
            )
        },
    ),
    Mistake(
        "a tensor without a buffer",
        "is in no buffer",
        {BUFFER: ("        struct.buffer = segment.handle\n", "")},
    ),
    Mistake(
        "a submission that nobody waits for",
        "",
        NOBODY_WAITS,
    ),
    Mistake(
        "a refused buffer that is used",
        "that Metal did not make",
        {"device/base.py": ("if lines or not handle:", "if not handle:")},
        {"FAKE_METAL_MEMORY": str(1 << 17)},
    ),
    Mistake(
        "inputs that are not sent",
        "from the processor's",
        {BUFFER: ("self._whole.send(self._staged(offset), offset, nbytes)", "pass")},
    ),
]
QUICK = ("a submission that nobody waits for", "memory that changes under a command")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of links to ours, in which single files are replaced. Its bytecode is kept."""
    copy = tmp_path_factory.mktemp("copy") / PACKAGE.name
    without = shutil.ignore_patterns("__pycache__", "sdk", "templates")
    shutil.copytree(PACKAGE, copy, copy_function=os.symlink, ignore=without)
    return copy


@pytest.mark.parametrize(
    "mistake",
    [
        pytest.param(it, id=it.name, marks=[] if it.name in QUICK else [pytest.mark.long])
        for it in MISTAKES
    ],
)
def test_a_mistake_is_caught(
    mistake: Mistake, package: Path, mac: dict[str, str], folder: Path
) -> None:
    for name, (ours, theirs) in mistake.edits.items():
        text = (package / name).read_text()
        assert ours in text, f"{name} has changed: say this mistake anew"
        (package / name).unlink()
        (package / name).write_text(text.replace(ours, theirs))
    try:
        status, said = exercise(
            mac, folder, PYTHONPATH=f"{package.parent}:{ROOT}", **mistake.variables
        )
    finally:
        for name in mistake.edits:
            (package / name).unlink()
            (package / name).symlink_to(PACKAGE / name)
    assert status != 0
    assert mistake.said in said, said[-3000:]


@pytest.mark.long
def test_without_a_mistake_nothing_is_said(
    package: Path, mac: dict[str, str], folder: Path
) -> None:
    assert exercise(mac, folder, PYTHONPATH=f"{package.parent}:{ROOT}") == (0, "")


@pytest.mark.long
def test_a_receipt(mac: dict[str, str], folder: Path, tmp_path: Path) -> None:
    model = f"m={folder / 'x.gguf'}"
    command = ["-m", "isthmus", "receipt", "--device", "metal", "--quick", "--model", model]
    done = run(mac, *command, "--out", tmp_path / "mac")
    assert done.returncode == 0, done.stderr
    assert "* measured on metal:0: same, KV caches in guest memory" in done.stdout
