"""The README's own examples, run as they stand, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.model
def test_examples(
    smollm2: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert smollm2.exists()
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(examples) == 4
    for code in examples:
        exec(compile(code, "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert len(said.split()) > 100
    assert "exact\n" in said
    assert "isthmus_actors_idle" in said
    assert (tmp_path / "ada.safetensors").exists()


def test_files_that_it_names_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
