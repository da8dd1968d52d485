"""The examples of the README and of docs/python.md, run as they stand, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.model
def test_examples(
    smollm2: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert smollm2.exists()
    pages = (README, ROOT / "docs/python.md")
    examples = [
        it
        for page in pages
        for it in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    ]
    assert len(examples) == 7
    for code in examples:
        exec(compile(code, "an example", "exec"), {})
    said = capsys.readouterr().out
    assert len(said.split()) > 100
    assert "exact\n" in said
    assert "isthmus_actors_idle" in said
    assert (tmp_path / "ada.safetensors").exists()
    assert (tmp_path / "half.safetensors").exists()


def headings(page: Path) -> set[str]:
    """The anchors that a forge makes of a page's headings."""
    lines = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL).splitlines()
    titles = [line.lstrip("#").strip().lower() for line in lines if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda it: it.name)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        assert not anchor or anchor in headings(file), target


def test_every_figure_is_among_those_that_were_measured() -> None:
    measured = (ROOT / "docs/measured.md").read_text()
    rows = re.findall(r"^\| .* \| .* \| `(.*)` \|$", README.read_text(), re.MULTILINE)
    assert len(rows) == 6
    for command in rows:
        assert f"`{command}`" in measured, command
