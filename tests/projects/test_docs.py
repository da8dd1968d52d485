"""docs/guests.md: each command and program in it, run in order, as a newcomer would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from isthmus.projects import RECIPES, SCRIPTS, Project
from tests.projects.conftest import Made

COOKBOOK = Path(__file__).parents[2] / "docs/cookbook.md"
PAGE = Path(__file__).parents[2] / "docs/guests.md"
BLOCK = re.compile(r"^```(\w+)(?: (\w+))?\n(.*?)^```", re.MULTILINE | re.DOTALL)
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def blocks(kind: str, mark: str | None = None, page: Path = PAGE) -> list[str]:
    """The page's blocks of a kind: those with a mark, or those without one."""
    return [
        text
        for it, found, text in BLOCK.findall(page.read_text())
        if (it, found) == (kind, mark or "")
    ]


def run(text: str, folder: Path) -> str:
    """What a block of commands prints; all of them must succeed."""
    shell = f'isthmus() {{ "{sys.executable}" -m isthmus "$@"; }}\nset -e\n{text}'
    paths = os.pathsep.join([str(ROOT / "src"), *os.environ.get("PYTHONPATH", "").split(":")])
    done = subprocess.run(
        ["bash", "-c", shell],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ziglang")
    first, cpp, tool, options = blocks("sh")
    assert run(first, tmp_path).endswith("Hello, I am scripted.")
    assert run(cpp, tmp_path).endswith("Hello, I am scripted.")
    run(tool, tmp_path)
    monkeypatch.chdir(tmp_path)
    (program,) = blocks("python")
    exec(program, {})
    assert capsys.readouterr().out == "A strip of land.\n1 answers\n"
    said = run(options, tmp_path)
    assert "--arg max_tokens=" in said
    assert said.endswith("a few")


@pytest.mark.long
@pytest.mark.parametrize(("lang", "block"), [("js", ("js", None)), ("py", ("python", "script"))])
def test_a_script(lang: str, block: tuple[str, str | None], tmp_path: Path) -> None:
    (source,), (command,) = blocks(*block), blocks("sh", lang)
    (tmp_path / f"agent.{lang}").write_text(source)
    assert run(command, tmp_path).endswith("Hello, I am scripted.")


@pytest.mark.long
def test_the_cookbook(tmp_path: Path) -> None:
    pytest.importorskip("ziglang")
    votes, plugin = blocks("sh", page=COOKBOOK)
    assert run(votes, tmp_path).endswith("5 of 5: Ankara, of course.")
    assert run(plugin, tmp_path).endswith("3")
    for recipe in (*RECIPES, *SCRIPTS):
        assert f"\n## {recipe}\n" in COOKBOOK.read_text()


@pytest.mark.long
@pytest.mark.parametrize(
    ("lang", "said"), [("rust", "% of 2 choices: no"), ("js", "3 of 3: Ankara")]
)
def test_the_cookbook_in_other_languages(lang: str, said: str, made: Made, tmp_path: Path) -> None:
    if lang != "js":
        made(lang, "hello")  # skips without a compiler
    (block,) = blocks("sh", lang, page=COOKBOOK)
    assert run(block, tmp_path).endswith(said)


def test_the_fixtures(made: Made, tmp_path: Path) -> None:
    project: Project = made("c", "hello")
    (tmp_path / "hello").symlink_to(project.folder)
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["isthmus.testing"]\n')
    (test,) = blocks("python", "fixture")
    (tmp_path / "test_agent.py").write_text(test)
    assert "1 passed" in run(f'"{sys.executable}" -m pytest -q -p no:cacheprovider', tmp_path)


@pytest.mark.parametrize(
    "lang", [pytest.param(it, marks=pytest.mark.long) for it in ("zig", "rust", "go", "as")]
)
def test_each_language(lang: str, made: Made, tmp_path: Path) -> None:
    made(lang, "hello")  # skips without a compiler
    (block,) = blocks("sh", lang)
    assert run(block, tmp_path).endswith("Hello, I am scripted.")
