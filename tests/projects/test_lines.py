"""Traps tell file and line of a guest that was built for debugging."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from isthmus.cli import main
from isthmus.errors import GuestTrapped
from isthmus.projects import Project, build, new_project
from isthmus.runtime import Runtime
from isthmus.wasm.lines import Lines

SOURCE = """\
#include "agent.h"

static int32_t divide(int32_t by)
{
    return 100 / by;
}

static int32_t deeper(int32_t n)
{
    volatile int32_t room[64] = {n};
    return deeper(n + room[0]) + room[1];
}

AGENT_EXPORT("on_message") int32_t on_message(int32_t nbytes)
{
    return nbytes == 5
        ? deeper(nbytes)
        : divide(nbytes);
}
"""
pytest.importorskip("ziglang")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = new_project(tmp_path_factory.mktemp("lines") / "agent", "c", "hello")
    (project.folder / "src/main.c").write_text(SOURCE)
    return project


@pytest.fixture(scope="module")
def module(project: Project) -> Path:
    return build(project, debug=True)


def line_of(text: str) -> int:
    return next(n for n, line in enumerate(SOURCE.splitlines(), 1) if text in line)


def test_a_trap_tells_file_and_line(isthmus_runtime: Runtime, module: Path) -> None:
    with pytest.raises(GuestTrapped, match=rf"by zero, in .*\(src/main\.c:{line_of('100 / by')}\)"):
        isthmus_runtime.spawn(module).send("")


def test_places_that_come_again_are_counted(
    module: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(module), "--message", "12345"]) == 1
    said = capsys.readouterr().err
    assert "stack" in said or "out-of-bounds" in said
    assert f"deeper (src/main.c:{line_of('return deeper')}) ×" in said


def test_a_release_has_names_alone(isthmus_runtime: Runtime, project: Project) -> None:
    with pytest.raises(GuestTrapped) as caught:
        isthmus_runtime.spawn(build(project)).send("")
    assert caught.value.backtrace == ("on_message",)


def test_damaged_tables_give_no_lines_and_no_error(project: Project) -> None:
    wasm = build(project, debug=True).read_bytes()
    at = wasm.index(b".debug_line")
    random.seed(1)
    for _ in range(200):
        damaged = bytearray(wasm)
        for _ in range(8):
            damaged[random.randrange(at + 11, min(at + 3000, len(wasm)))] = random.randrange(256)
        lines = Lines(bytes(damaged))
        assert isinstance(lines.find(20, 10), str)
    assert Lines(wasm[: at + 40]).find(20, 10) == ""
