"""Compiles the guest that runs scripts: `guests/js/js.c` with the interpreter's source.

The source comes from the Python package index, is compared with a hash, and is thrown away
afterwards. The licence of QuickJS-NG is MIT.
"""

from __future__ import annotations

import json
import os
import tarfile
import tempfile
from pathlib import Path

from isthmus.config import Environment
from isthmus.download import Watch, fetch_archive, ignore
from isthmus.errors import BuildFailed, DownloadError
from isthmus.projects.building import LEFT_OUT, ZIG_FLAGS, run_compiler
from isthmus.projects.project import open_project, sdk_folder
from isthmus.projects.toolchain import find_zig
from isthmus.runtime.scripts import QUICKJS, interpreter_folder, interpreter_path
from isthmus.wasm.card import with_card, without_sections

_SOURCES = ("quickjs.c", "dtoa.c", "libregexp.c", "libunicode.c")
_WITHIN = "upstream-quickjs"
"""The folder of the sources in the archive."""
_STACK_NBYTES = 1 << 20
"""Bytes of the stack: an interpreter's functions call each other deeply."""


def make_interpreter(environment: Environment, watch: Watch = ignore) -> Path:
    """The compiled guest in the cache folder; what is there already is not made again.

    Raises ToolchainMissing without Zig, DownloadError, BuildFailed.
    """
    path = interpreter_path(environment.cache)
    if path.exists():
        return path
    compiler = find_zig()  # before anything is fetched
    with tempfile.TemporaryDirectory(prefix="isthmus-js-") as name:
        folder = Path(name)
        quickjs = _unpacked(fetch_archive(QUICKJS, environment, folder, watch), folder)
        _write_prelude(folder)
        made = folder / "js.wasm"
        run_compiler(compiler, [*_arguments(quickjs, folder), "-o", made], folder, "js")
        module = without_sections(made.read_bytes(), LEFT_OUT)
        module = with_card(module, open_project(interpreter_folder()).card)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_bytes(module)
        partial.replace(path)
    except OSError as error:
        raise BuildFailed(f"cannot write {path}: {error.strerror}") from None
    return path


def _unpacked(archive: Path, folder: Path) -> Path:
    """The folder with the interpreter's sources."""
    try:
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                if member.isfile() and Path(member.name).parent.name == _WITHIN:
                    data = tar.extractfile(member)
                    assert data is not None, "it is a file"
                    (folder / Path(member.name).name).write_bytes(data.read())
    except (tarfile.TarError, OSError) as error:
        raise DownloadError(f"cannot unpack {QUICKJS.package} {QUICKJS.version}: {error}") from None
    return folder


def _write_prelude(folder: Path) -> None:
    """prelude.h: prelude.js as a string of C."""
    lines = (interpreter_folder() / "prelude.js").read_text(encoding="utf-8").splitlines()
    text = "\n".join(f"    {json.dumps(line + chr(10))}" for line in lines)
    (folder / "prelude.h").write_text(f"static const char PRELUDE[] =\n{text};\n", encoding="utf-8")


def _arguments(quickjs: Path, folder: Path) -> list[str | Path]:
    """What the compiler is told, but for where the module goes."""
    flags = (*ZIG_FLAGS, "-std=gnu11", "-Os", "-D_GNU_SOURCE", "-w", "-msimd128")
    headers = [f"-I{it}" for it in (quickjs, sdk_folder("c"), folder, interpreter_folder())]
    sources = [str(quickjs / it) for it in _SOURCES] + [str(interpreter_folder() / "js.c")]
    return ["cc", *flags, f"-Wl,-z,stack-size={_STACK_NBYTES}", *headers, *sources]
