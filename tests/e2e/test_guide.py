"""docs/guide.md as a newcomer follows it: its blocks, run as they stand, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from isthmus.cli import build_parser

GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"
TEXT = GUIDE.read_text()


@pytest.mark.model
def test_its_blocks(
    smollm2: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert smollm2.exists()
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 6
    for code in blocks:
        exec(compile(code, GUIDE.name, "exec"), names)
    said = capsys.readouterr().out
    for line in ("('tokens_out',)\n", "(deadline_s)", "idle\n", "HELLO!\n", "exact\n", "'age'"):
        assert line in said, line
    answers = said.partition("HELLO!\n")[2].split("\n")
    assert (tmp_path / "left.safetensors").exists()
    assert len(answers) > 6


def test_its_commands_and_links() -> None:
    for line in re.findall(r"^isthmus ([^#\n]+)", TEXT, re.MULTILINE):
        build_parser().parse_args(line.split())
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (GUIDE.parent / target).exists(), target
