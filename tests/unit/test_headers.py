"""Headers of many files: few processes read them, and one that ends its process harms no other."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from isthmus.errors import ModelError, ModelFileError, ModelNotFound
from isthmus.model.files import headers
from isthmus.model.files.gguf import GgufFile
from isthmus.model.files.headers import open_headers
from isthmus.native.loader import Library
from isthmus.trial import Outcome, try_out
from tests.tiny_gguf import TinyLlama

TRIAL = """
import os
from isthmus.model.files import header_trial
from isthmus.model.files.header_trial import prepare

def read_headers(job):
    {}
    return header_trial.read_headers(job)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TinyLlama(n_layer=1).write(tmp_path_factory.mktemp("headers") / "model.gguf")


@pytest.fixture
def n_files(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many files each process was given."""
    found: list[int] = []

    def counted(script: Path, function: str, job: bytes, *more: Any) -> Outcome:
        found.append(job.count(b"\0") + 1)
        return try_out(script, function, job, *more)

    monkeypatch.setattr(headers, "try_out", counted)
    return found


def copies(model: Path, folder: Path, *names: str) -> list[Path]:
    return [Path(shutil.copy(model, folder / name)) for name in names]


def with_trial(monkeypatch: pytest.MonkeyPatch, folder: Path, first: str) -> None:
    """Has processes do something before they read."""
    script = folder / "odd_trial.py"
    script.write_text(TRIAL.format(first))
    monkeypatch.setattr(headers, "_SCRIPT", script)


def test_many_files_take_one_process(
    library: Library, model: Path, tmp_path: Path, n_files: list[int]
) -> None:
    good = copies(model, tmp_path, *(f"{n}.gguf" for n in range(40)))
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(model.read_bytes()[:1000])
    paths = [*good[:20], bad, tmp_path / "none.gguf", tmp_path, *good[20:]]
    found = list(open_headers(library, paths))
    assert n_files == [43]
    wrong = [it for it in found if isinstance(it, ModelError)]
    assert [type(it) for it in wrong] == [ModelFileError, ModelNotFound, ModelNotFound]
    assert [found.index(it) for it in wrong] == [20, 21, 22]
    read = [it for it in found if isinstance(it, GgufFile)]
    assert [it.path for it in read] == good
    assert all(it.tensors == GgufFile(library, model).tensors for it in read)
    assert list(open_headers(library, [])) == []


@pytest.mark.slow
def test_a_file_that_ends_the_process_is_alone_in_the_end(
    library: Library,
    model: Path,
    tmp_path: Path,
    n_files: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_trial(monkeypatch, tmp_path, 'os._exit(3) if b"crash" in job else None')
    monkeypatch.setattr(headers, "_PARTS", 2)
    paths = copies(model, tmp_path, "a.gguf", "b.gguf", "crash.gguf", "d.gguf")
    found = list(open_headers(library, paths))
    assert n_files == [4, 2, 2, 1, 1]
    assert [isinstance(it, GgufFile) for it in found] == [True, True, False, True]
    assert "crash.gguf is damaged or malicious" in str(found[2])


@pytest.mark.slow
def test_what_a_process_has_no_time_for_is_left_to_another(
    library: Library,
    model: Path,
    tmp_path: Path,
    n_files: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_trial(monkeypatch, tmp_path, "header_trial._ENOUGH_S = -1")
    paths = copies(model, tmp_path, "a.gguf", "b.gguf", "c.gguf")
    assert [isinstance(it, GgufFile) for it in open_headers(library, paths)] == [True] * 3
    assert n_files == [3, 2, 1]


def test_a_file_that_changes_meanwhile_is_not_read(
    library: Library, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = copies(model, tmp_path, "a.gguf", "b.gguf")

    def changing(*given: Any) -> Outcome:
        outcome = try_out(*given)
        paths[1].unlink()
        shutil.copy(model, paths[1])
        return outcome

    monkeypatch.setattr(headers, "try_out", changing)
    good, changed = open_headers(library, paths)
    assert isinstance(good, GgufFile)
    assert "b.gguf changed while it was read" in str(changed)
