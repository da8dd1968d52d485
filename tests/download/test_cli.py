"""`isthmus pull`, in this process, from a hub of the tests' own."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from isthmus.cli import main
from isthmus.cli.progress import download_bars
from isthmus.download import Progress
from tests.download.hub import FakeHub
from tests.split_gguf import split
from tests.tiny_gguf import TinyLlama


@pytest.fixture
def shards(
    hub: FakeHub, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[Path]:
    """A model that the hub has, too."""
    whole = TinyLlama(with_tokenizer=True).write(tmp_path / "whole.gguf")
    shards = split(whole, tmp_path, "tiny-Q4_0", 3)
    hub.repos["org/repo"] = {it.name: it.read_bytes() for it in shards}
    monkeypatch.setenv("ISTHMUS_CACHE", str(cache))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    return shards


def test_a_model_of_the_hub(
    hub: FakeHub,
    shards: list[Path],
    cache: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.token = "s3cret"
    assert main(["pull", "hf:org/repo"]) == 2
    assert "set HF_TOKEN" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "s3cret")
    assert main(["pull", "hf:org/repo:Q4_0", "--revision", "v1"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{cache / 'models' / shards[0].name}\n"
    assert "in 3 files" in err
    assert "s3cret" not in err
    assert main(["pull", "hf:org/repo", "--revision", "none"]) == 2
    assert "at the revision none" in capsys.readouterr().err


def test_a_file_is_checked_where_it_is(
    shards: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link = tmp_path / "a = b: c.gguf"
    link.symlink_to(shards[1])
    assert main(["pull", str(link)]) == 0
    assert capsys.readouterr().out == f"{shards[0]}\n"
    shards[2].unlink()
    assert main(["pull", str(shards[0])]) == 2
    assert "lacks 1: tiny-Q4_0-00003-of-00003.gguf" in capsys.readouterr().err
    for source, said in (("none.gguf", "none.gguf; give"), ("", "''; give")):
        assert main(["pull", source]) == 2
        assert f"there is no file {said} the path of a GGUF file" in capsys.readouterr().err


def test_a_path_that_is_no_text_is_printed_byte_for_byte(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = os.fsencode(tmp_path) + b"/\xff.gguf"
    try:
        os.symlink(tmp_path / "whole.gguf", odd)
    except OSError:
        pytest.skip("file names are UTF-8 here")
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, "utf-8", "strict"))
    assert main(["pull", os.fsdecode(odd)]) == 0
    assert out.getvalue() == odd + b"\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with download_bars() as (say, watch):
        say("Fetching\x1b[2J")
        for done in (0, 500, 1000):
            watch(Progress("a\x1b.gguf", "0" * 64, done, 1000))
    shown = terminal.getvalue()
    assert "Fetching\\x1b[2J\n" in shown
    assert "a\\x1b.gguf: 100%" in shown
    assert "1.00k/1.00k" in shown
