"""Files that libllama's own graph is to compute: a child process opens and decodes each first."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from isthmus.errors import ModelError, ModelFileError, ModelUnsupported
from isthmus.file_hash import FileHashes
from isthmus.model.adopted.vetting import vet
from isthmus.model.files import opening
from isthmus.model.files.gguf import GgufFile
from isthmus.model.files.graph_facts import GraphFacts
from isthmus.model.files.opening import open_tried
from isthmus.native.loader import Library
from isthmus.survey.tiny import tiny_model
from tests.fuzz.parts import Parts, lie
from tests.tiny_gguf import TinyModel

ARCHITECTURES = ("qwen35", "gemma4", "gpt-oss", "modern-bert", "lfm2", "deepseek2", "rwkv7")
N_SHORT, N_LONG = 3, 200


def truncated(raw: bytes, rng: random.Random) -> bytes:
    return raw[: rng.randrange(len(raw))]


def flipped(raw: bytes, rng: random.Random) -> bytes:
    """Bits are turned over: in half of the cases in the header, where they say something."""
    out = bytearray(raw)
    area = 24_000 if rng.random() < 0.5 else len(out)
    for _ in range(rng.choice([1, 1, 8, 64])):
        out[rng.randrange(area)] ^= 1 << rng.randrange(8)
    return bytes(out)


def lying(raw: bytes, rng: random.Random) -> bytes:
    parts = Parts.read(raw)
    for _ in range(rng.choice([1, 1, 2, 3])):
        lie(parts, rng)
    return parts.write()


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "truncated": truncated,
    "flipped": flipped,
    "lying": lying,
}


@cache
def good(library: Library, name: str) -> bytes:
    return tiny_model(library, name)


def write(library: Library, folder: Path, name: str) -> Path:
    path = folder / f"{name}.gguf"
    path.write_bytes(good(library, name))
    return path


def children() -> set[int]:
    """The processes that this one has started and that are there."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {int(it) for task in tasks for it in task.read_text().split()}


@pytest.fixture
def no_child_left() -> Iterator[None]:
    before = children()
    yield
    assert children() <= before


def outcome(library: Library, path: Path) -> str:
    """What becomes of a file; one that the child survives is opened and decoded here as well."""
    try:
        facts = open_tried(library, path, FileHashes(), own=()).graph
    except ModelError as error:
        return "refused" if str(path) in str(error) else f"not named: {error}"
    assert facts is not None
    try:
        assert vet(library, GgufFile(library, path)) == facts
    except ModelError as error:
        pytest.fail(f"it was tried, and yet: {error}")
    return "good"


def attack(library: Library, folder: Path, kind: str, n_files: int) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    for seed in range(n_files):
        rng = random.Random(f"{kind} {seed}")
        name = ARCHITECTURES[seed % len(ARCHITECTURES)]
        path = folder / f"{kind}-{seed}-{name}.gguf"
        path.write_bytes(DAMAGES[kind](good(library, name), rng))
        outcomes[outcome(library, path)] += 1
        path.unlink()
    return outcomes


@pytest.mark.usefixtures("no_child_left")
@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_files_are_refused_or_work(library: Library, tmp_path: Path, kind: str) -> None:
    outcomes = attack(library, tmp_path, kind, N_SHORT)
    assert outcomes["refused"]
    assert outcomes.keys() <= {"refused", "good"}


@pytest.mark.long
@pytest.mark.attacks
@pytest.mark.usefixtures("no_child_left")
@pytest.mark.parametrize("kind", DAMAGES)
def test_many_damaged_files(library: Library, tmp_path: Path, kind: str) -> None:
    outcomes = attack(library, tmp_path, kind, N_LONG)
    print(f"\n{kind}: {dict(outcomes)}")
    assert outcomes["refused"]
    assert outcomes.keys() <= {"refused", "good"}
    assert outcomes["good"] or kind == "truncated"


def test_what_the_child_found_out(library: Library, tmp_path: Path) -> None:
    path = write(library, tmp_path, "qwen35")
    facts = open_tried(library, path, FileHashes(), own=("llama",)).graph
    assert facts is not None
    assert facts.keeps_state
    assert facts.n_vocab == 320
    cache_nbytes, state_nbytes = facts.memories
    assert facts.states == (1,)
    assert facts.session_nbytes(512) == 4 * 320 + 2 * cache_nbytes + state_nbytes


def test_an_own_architecture_is_not_decoded(library: Library, tmp_path: Path) -> None:
    path = TinyModel("llama", with_tokenizer=True).write(tmp_path / "x.gguf")
    assert open_tried(library, path, FileHashes(), own=("llama",)).graph is None
    assert open_tried(library, path, FileHashes()).graph is None
    facts = open_tried(library, path, FileHashes(), own=()).graph
    assert facts is not None
    assert not facts.keeps_state


@pytest.mark.parametrize("name", ["plm", "chameleon"])  # the latter in passes without logits
def test_an_abort_of_the_library_is_the_reason(name: str, library: Library, tmp_path: Path) -> None:
    path = write(library, tmp_path, name)
    words = r"ended the process in which .*ggml\.c:\d+: GGML_ASSERT\("
    with pytest.raises(ModelFileError, match=words):
        open_tried(library, path, FileHashes(), own=())


@pytest.mark.usefixtures("no_child_left")
def test_a_child_that_takes_too_long_is_ended(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(library, tmp_path, "lfm2")
    limits = opening._limits_for(path.stat().st_size)
    monkeypatch.setattr(opening, "_limits_for", lambda _nbytes: replace(limits, wall_s=0.05))
    with pytest.raises(ModelFileError, match="was not tried, since the machine is too busy"):
        open_tried(library, path, FileHashes(), own=())


def test_a_large_file_has_more_time() -> None:
    small, large = opening._limits_for(10**6), opening._limits_for(40 * 10**9)
    assert small.cpu_s == 20
    assert large.cpu_s > 200
    assert large.memory_nbytes > 80 * 10**9
    assert large.wall_s > 1000


def test_what_the_library_says_is_the_reason(library: Library, tmp_path: Path) -> None:
    with pytest.raises(ModelUnsupported, match="encoder before its decoder"):
        open_tried(library, write(library, tmp_path, "t5"), FileHashes(), own=())
    parts = Parts.read(good(library, "qwen35"))
    parts.get("general.architecture").value = b"none-such"
    path = tmp_path / "none-such.gguf"
    path.write_bytes(parts.write())
    with pytest.raises(ModelUnsupported, match="'none-such'"):
        open_tried(library, path, FileHashes(), own=())


def test_what_was_found_out_is_remembered(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(library, tmp_path, "lfm2")
    os.utime(path, (1_000_000_000, 1_000_000_000))
    hashes = FileHashes(tmp_path / "hashes")
    facts = open_tried(library, path, hashes, own=()).graph
    monkeypatch.setattr(opening, "try_out", None)
    assert open_tried(library, path, hashes, own=()).graph == facts
    (kept,) = (tmp_path / "hashes").iterdir()
    kept.write_text('{"keeps_state": 1}')
    with pytest.raises(TypeError):  # it is tried again, since that says too little
        open_tried(library, path, hashes, own=())


def test_facts_as_json() -> None:
    facts = GraphFacts(True, (65536, 512), (1,), 320)
    assert GraphFacts.from_json(json.loads(json.dumps(facts.as_json()))) == facts
    with pytest.raises(TypeError):
        GraphFacts.from_json({"keeps_state": True})
