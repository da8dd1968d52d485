"""Projects in each language, built once for all tests that talk with them."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from isthmus.errors import ToolchainMissing
from isthmus.projects import Project, build, new_project

Made = Callable[[str, str], Project]


@pytest.fixture(scope="session")
def assemblyscript(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the compiler in its node_modules, from npm's registry."""
    folder = tmp_path_factory.mktemp("assemblyscript")
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    shutil.copy(Path("src/isthmus/templates/as/hello/package.json"), folder)
    (folder / "package.json").write_text(
        (folder / "package.json").read_text().replace("NAME", "compiler")
    )
    command = [npm, "install", "--silent", "--prefix", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        pytest.skip(f"npm cannot fetch assemblyscript: {done.stderr.strip()[-200:]}")
    return folder / "node_modules"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Made:
    """Makes a project of a language from a template, and builds it; skips without a compiler."""

    @functools.cache
    def making(lang: str, template: str) -> Project:
        project = new_project(tmp_path_factory.mktemp(lang) / template, lang, template)
        if lang == "as":
            modules = request.getfixturevalue("assemblyscript")
            (project.folder / "node_modules").symlink_to(modules)
        try:
            build(project)
        except ToolchainMissing as error:
            pytest.skip(str(error))
        return project

    return making
