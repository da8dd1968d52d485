"""The README's own example, run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.model
def test_example(smollm2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    code = code.replace('"model.gguf"', repr(str(smollm2)))
    code = code.replace('"chat", models', '"chat", args=["max_tokens=12"], models')
    exec(compile(code, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.split()) > 3


def test_files_that_it_names_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
