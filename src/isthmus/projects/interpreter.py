"""Compiles the guests that run scripts: their sources here with those of an interpreter.

The interpreter's source is fetched, compared with a hash, and thrown away afterwards; its licence,
MIT, stays beside the compiled guest. `quickjs.py` and `micropython.py` know how each is compiled.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from isthmus.config import Environment
from isthmus.download import Watch, fetch_archive, ignore
from isthmus.errors import BuildFailed
from isthmus.projects.building import LEFT_OUT
from isthmus.projects.micropython import compile_micropython
from isthmus.projects.project import open_project
from isthmus.projects.quickjs import compile_quickjs
from isthmus.projects.toolchain import Toolchain, find_zig
from isthmus.runtime.scripts import MICROPYTHON, QUICKJS, Interpreter
from isthmus.wasm.card import with_card, without_sections

Compile = Callable[[Toolchain, Path, Path, Path], tuple[bytes, bytes]]
"""Takes Zig, the fetched archive, our own sources and an empty folder: the module, the licence."""
_COMPILERS: dict[str, Compile] = {
    QUICKJS.name: compile_quickjs,
    MICROPYTHON.name: compile_micropython,
}


def make_interpreter(
    interpreter: Interpreter, environment: Environment, watch: Watch = ignore
) -> Path:
    """The compiled guest in the cache folder; what is there already is not made again.

    Raises ToolchainMissing without Zig, DownloadError, BuildFailed.
    """
    path = interpreter.path(environment.cache)
    if path.exists():
        return path
    compiler = find_zig()  # before anything is fetched
    with tempfile.TemporaryDirectory(prefix=f"isthmus-{interpreter.name}-") as name:
        work = Path(name) / "work"
        work.mkdir()
        _write_prelude(interpreter, work)
        archive = fetch_archive(interpreter.source, environment, Path(name), watch)
        compile_ = _COMPILERS[interpreter.name]
        made, licence = compile_(compiler, archive, interpreter.folder, work)
    module = with_card(without_sections(made, LEFT_OUT), open_project(interpreter.folder).card)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".LICENSE").write_bytes(licence)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_bytes(module)
        partial.replace(path)
    except OSError as error:
        raise BuildFailed(f"cannot write {path}: {error.strerror}") from None
    return path


def _write_prelude(interpreter: Interpreter, folder: Path) -> None:
    """prelude.h: prelude.js or prelude.py as a string of C."""
    source = interpreter.folder / f"prelude.{interpreter.name}"
    lines = source.read_text(encoding="utf-8").splitlines()
    text = "\n".join(f"    {json.dumps(line + chr(10))}" for line in lines)
    (folder / "prelude.h").write_text(f"static const char PRELUDE[] =\n{text};\n", encoding="utf-8")
