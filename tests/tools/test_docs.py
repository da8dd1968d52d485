"""The examples of docs/tools.md, as they stand."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from isthmus.cli import build_parser
from isthmus.tools.spec import specs_of_table

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAGE = (Path(__file__).parents[2] / "docs" / "tools.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.model
def test_python(
    smollm2: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(tmp_path))
    assert smollm2.exists()
    [code] = blocks("python")
    exec(compile(code, "tools.md", "exec"), {"__name__": "example"})
    assert re.search(r"^(forecast|lookup|today) done \d+\.\d\d s$", capsys.readouterr().out, re.M)
    assert (tmp_path / "ada.safetensors").exists()


def test_toml() -> None:
    [text] = blocks("toml")
    specs = specs_of_table(tomllib.loads(text)["tools"], "tools.md")
    assert set(specs) == {"today", "weather", "search", "maps", "http_fetch"}
    assert specs["search"].limits.deadline_s == 10


def test_options_that_it_names() -> None:
    commands = [it for block in blocks("sh") for it in block.splitlines()]
    mine = [it for it in commands if it.startswith("isthmus")]
    assert len(mine) == 3
    for command in mine:
        build_parser().parse_args(shlex.split(command)[1:])


def test_files_that_it_names_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (Path(__file__).parents[2] / "docs" / target).exists(), target
