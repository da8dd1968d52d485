"""Scripts as modules, and what a compiled interpreter depends on."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

import isthmus
from isthmus.runtime.scripts import INTERPRETERS, MAX_SCRIPT_NBYTES, Interpreter, Script
from isthmus.wasm.binary import leb

PACKAGE = Path(isthmus.__file__).parent
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^">]+)[">]', re.MULTILINE)
each_interpreter = pytest.mark.parametrize("interpreter", INTERPRETERS.values(), ids=INTERPRETERS)


@pytest.mark.parametrize("source", ["", "x = 1\n", "ü" * (MAX_SCRIPT_NBYTES // 2)])
def test_a_script_is_a_module(source: str) -> None:
    script = Script.of("agent.py", source.encode())
    assert script.interpreter.name == "py"
    assert Script.of_module(script.module) == script


def test_other_modules_are_no_scripts() -> None:
    module = Script.of("agent.js", b"let x;").module
    named = Script("agent.lua", "x").module
    section = module[8:]
    for other in (b"", module[:8], module + section, module + b"\0", module[:-1], named,
                  b"\0asm\2\0\0\0" + section, module.replace(b"let", b"\0et"),
                  module[:8] + b"\0" + leb(len(section)) + section[1:]):  # fmt: skip
        assert Script.of_module(other) is None, other


def included(interpreter: Interpreter) -> set[Path]:
    """Files of the package that the guest's sources include, and those that these include."""
    folders = (PACKAGE / "guests" / interpreter.name, PACKAGE / "sdk/c")
    found, left = set[Path](), [folders[0] / f"{interpreter.name}.c"]
    while left:
        path = left.pop()
        found.add(path)
        names = INCLUDE.findall(path.read_text())
        left += [it / name for it in folders for name in names if (it / name).is_file()]
        left = [it for it in left if it not in found]
    return found


@each_interpreter
def test_everything_that_it_is_made_of_is_in_its_name(
    interpreter: Interpreter, tmp_path: Path
) -> None:
    package = tmp_path / "isthmus"
    for part in interpreter.parts():
        copy = package / part.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(part, copy)
    before = interpreter.path(tmp_path, package)
    assert before == interpreter.path(tmp_path)
    names = {before}
    for part in interpreter.parts(package):
        contents = part.read_bytes()
        part.write_bytes(contents + b" ")
        names.add(interpreter.path(tmp_path, package))
        part.write_bytes(contents)
    assert len(names) == 1 + len(interpreter.parts())
    for aside in ("__pycache__/prelude.cpython-312.pyc", interpreter.description):
        other = package / "guests" / interpreter.name / aside  # pip compiles what it installs
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(b"x")
    assert interpreter.path(tmp_path, package) == before


@each_interpreter
def test_headers_of_the_sdk_are_among_what_it_is_made_of(interpreter: Interpreter) -> None:
    parts = set(interpreter.parts())
    assert PACKAGE / "sdk/c/agent.h" in included(interpreter)
    assert included(interpreter) <= parts
    assert {it.suffix for it in parts} >= {".c", ".h", ".toml"}
    prelude = PACKAGE / "guests" / interpreter.name / f"prelude.{interpreter.name}"
    assert prelude in parts
