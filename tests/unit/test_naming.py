"""How the command line takes models and adapters apart: `[NAME=]PATH`, `[NAME=]PATH[:SCALE]`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from isthmus.cli.naming import model_path, named_models, parse_lora, usual_name
from isthmus.cli.restoring import _find
from isthmus.errors import ModelNotFound, SettingsError
from isthmus.file_hash import FileHashes
from isthmus.runtime import sources
from isthmus.shards import model_files

FILES = ("a.gguf", "b=c.gguf", "d = e: f.gguf", "=g.gguf", "x=y=z", "big-00001-of-00001.gguf")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for it in FILES:
        (tmp_path / it).write_bytes(it.encode())
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "only.gguf").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "name", "path"),
    [
        ("a.gguf", "default", "a.gguf"),
        ("n=a.gguf", "n", "a.gguf"),
        ("b=c.gguf", "default", "b=c.gguf"),
        ("n=b=c.gguf", "n", "b=c.gguf"),
        ("d = e: f.gguf", "default", "d = e: f.gguf"),
        ("n=d = e: f.gguf", "n", "d = e: f.gguf"),
        ("=g.gguf", "default", "=g.gguf"),
        ("x=y=z", "default", "x=y=z"),
        ("a=b=a.gguf", "a=b", "a.gguf"),
        ("n=none=such.gguf", "n", "none=such.gguf"),
        ("smollm2", "default", "smollm2"),
        ("n=llama3.2:1b", "n", "llama3.2:1b"),
        ("n=hf:org/repo:Q8_0", "n", "hf:org/repo:Q8_0"),
    ],
)
def test_names_and_paths(text: str, name: str, path: str) -> None:
    assert named_models([text]) == {name: path}


def test_a_path_that_exists_wins(here: Path) -> None:
    (here / "smollm2").write_bytes(b"")
    (here / "n=a.gguf").write_bytes(b"")
    assert named_models(["n=a.gguf"]) == {"default": "n=a.gguf"}
    assert model_path("smollm2") == Path("smollm2")


@pytest.mark.parametrize("text", ["=a.gguf", "=none.gguf"])
def test_an_empty_name(text: str) -> None:
    with pytest.raises(SettingsError, match="is empty or used twice"):
        named_models([text])


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a.gguf", "a"),
        ("d = e: f.gguf", "d = e: f"),
        ("big-00001-of-00001.gguf", "big"),
        ("alone", "only"),
        ("llama3.2:1b", "llama3.2:1b"),
    ],
)
def test_the_usual_name(path: str, name: str) -> None:
    assert usual_name(path) == name
    assert named_models([path], default=None) == {name: path}


def test_a_name_that_is_no_text() -> None:
    odd = os.fsdecode(b"\xff.gguf")
    assert usual_name(odd) == "\\udcff"


def test_files_of_names() -> None:
    assert model_path("alone") == Path("alone/only.gguf")
    with pytest.raises(ModelNotFound, match=r"no file none\.gguf; give the path of a GGUF file"):
        model_path("none.gguf")
    with pytest.raises(ModelNotFound, match="run: isthmus pull hf:org/repo"):
        model_path("hf:org/repo")
    for text in ("x" * 5000, "~nobody-of-this-name/x"):
        with pytest.raises(ModelNotFound):
            model_path(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a.gguf", ("", "a.gguf", 1.0)),
        ("a.gguf:0.5", ("", "a.gguf", 0.5)),
        ("n=a.gguf:-2", ("n", "a.gguf", -2.0)),
        ("d = e: f.gguf", ("", "d = e: f.gguf", 1.0)),
        ("n=d = e: f.gguf:0.5", ("n", "d = e: f.gguf", 0.5)),
        ("b=c.gguf:0.5", ("", "b=c.gguf", 0.5)),
        ("n=none.gguf:0.5", ("n", "none.gguf", 0.5)),
    ],
)
def test_adapters(text: str, found: tuple[str, str, float]) -> None:
    assert parse_lora(text) == found


def test_a_scale_that_is_none() -> None:
    with pytest.raises(SettingsError, match="'much' is no scale"):
        parse_lora("n=a.gguf:much")


def test_the_shards_of_a_snapshots_model_are_found(here: Path) -> None:
    for n in (1, 2):
        (here / f"m-0000{n}-of-00002.gguf").write_bytes(bytes([n]))
    first = here / "m-00001-of-00002.gguf"
    sha256 = FileHashes().sha256(model_files(first))
    elsewhere = here / "alone" / first.name
    elsewhere.write_bytes(b"")  # whose other shard is missing
    assert _find(first.name, sha256, here / "alone") == first.name


def test_what_python_gives(here: Path) -> None:
    """`load_model` takes paths and names; what is neither is told as on the command line."""
    assert sources.model_path("none.gguf", here) == Path("none.gguf")
    assert sources.model_path("alone", here) == Path("alone")
    with pytest.raises(ModelNotFound, match="there is no file smolm2: did you mean smollm2"):
        sources.model_path("smolm2", here)
    with pytest.raises(ModelNotFound, match=r"run: isthmus pull hf:org/repo/x\.gguf"):
        sources.model_path("hf:org/repo/x.gguf", here)
