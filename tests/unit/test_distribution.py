"""What an index and an installer see of the package."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import isthmus
from isthmus.version import VERSION

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_are_absolute_where_the_repository_is_known(hook: ModuleType) -> None:
    assert hook.repository_of({}) is None
    repository = hook.repository_of({"GITHUB_REPOSITORY": "org/isthmus"})
    assert repository == "https://github.com/org/isthmus"
    text = hook.with_absolute_links(README, repository, "c0ffee")
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert len(targets) > 15
    assert all(it.startswith(("https://", "#")) for it in targets)
    for kind, path in re.findall(rf"{repository}/(raw|blob)/c0ffee/([^)#]+)", text):
        assert (ROOT / path).exists()
        assert (kind == "raw") == path.endswith(".png")


def test_urls_lead_to_files_that_there_are(hook: ModuleType) -> None:
    urls = hook.urls_of("https://example.org/isthmus")
    for url in urls.values():
        path = url.partition("/blob/main/")[2]
        assert (ROOT / path).exists()


def test_the_changelog_begins_with_this_version() -> None:
    heads = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heads[0] in ("Unreleased", VERSION)
    assert VERSION in heads
    assert isthmus.__version__ == VERSION


def test_extras_that_errors_name_are_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = set()
    for path in (ROOT / "src").rglob("*.py"):
        named |= set(re.findall(r"isthmus\[(\w+)\]", path.read_text()))
    assert named
    assert named <= {*project["optional-dependencies"]}
