"""`isthmus receipt`: what it writes, what it leaves out, and that it says what failed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from isthmus.cli import main


def receipt(*options: str, out: Path) -> int:
    return main(["receipt", "--device", "cpu", "--threads", "1", *options, "--out", str(out)])


@pytest.mark.slow
def test_two_files_that_can_be_sent(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without names of folders; a second run adds what it asked."""
    monkeypatch.setenv("HOME", str(tiny.parent))
    out, model = tmp_path / "new folder" / "mine", ["--quick", "--model", f"m={tiny}"]
    assert receipt(*model, "--questions", "decode", out=out) == 0
    said = capsys.readouterr()
    text = out.with_name("mine.md").read_text()
    assert said.out == text
    assert "attach both to an issue" in said.err
    assert "| m | 64 | " in text
    assert receipt(*model, "--questions", "verify", "--sizes", "verify=64KiB", out=out) == 0
    written = out.with_name("mine.json").read_text()
    record = json.loads(written)
    assert len(record["commands"]) == 2
    assert record["models"]["m"]["decode"]["results"][0]["logits_relative_error"] == 0
    [proof] = record["verify"]["results"]
    assert proof["holds"]
    assert proof["nbytes"] == 65536
    assert str(tmp_path.parent) not in written
    assert str(tiny.parent) not in written


@pytest.mark.slow
def test_what_fails_is_written_down(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--sizes", "decode=many"]
    out = tmp_path / "r"
    assert receipt("--model", str(tiny), "--questions", "decode", *sizes, out=out) == 1
    assert "not answered, or wrong: decode; the receipt says why" in capsys.readouterr().err
    [reports] = json.loads((tmp_path / "r.json").read_text())["models"].values()
    assert f"| {tiny.stem} | {reports['decode']['failed']} |" in (tmp_path / "r.md").read_text()


def test_what_there_is_no_time_for(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert receipt("--model", str(tiny), "--minutes", "0.001", out=tmp_path / "r") == 1
    assert "verify: no time was left" in capsys.readouterr().err
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["verify"] == {"failed": "no time was left"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--questions", "decode;size"], "--questions: 'size' is none of verify; memory; decode"),
        (["--sizes", "decode"], "--sizes decode: give a question and its sizes"),
        (["--sizes", "speed=3"], "--sizes speed=3: give a question and its sizes"),
        (["--minutes", "0"], "--repeats and --minutes: give more than 0"),
        (["--repeats", "0"], "--repeats and --minutes: give more than 0"),
    ],
)
def test_options_that_mean_nothing(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert receipt(*options, out=tmp_path / "r") == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_receipt_that_is_none_is_begun_anew(tmp_path: Path, tiny: Path) -> None:
    for text in ("", "[]", '{"commit": 1}', '"x"'):
        (tmp_path / "r.json").write_text(text)
        assert receipt("--model", str(tiny), "--minutes", "0.001", out=tmp_path / "r") == 1
        assert len(json.loads((tmp_path / "r.json").read_text())["commands"]) == 1
