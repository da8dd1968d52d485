"""Compiles the guest `py`: `guests/py/py.c` with MicroPython.

MicroPython's own build collects names of Python (qstrs), modules and roots of the collector from
its preprocessed sources, and three of its scripts make headers of them:

1. the sources with `NO_QSTR`, through the preprocessor, have all three as text;
2. `qstrdefs.generated.h` has the names, `moduledefs.h` the modules, `root_pointers.h` the roots;
3. the sources are compiled with these, and exceptions become returns (`unwinding.py`).
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from isthmus.errors import BuildFailed, DownloadError
from isthmus.projects.building import run_compiler
from isthmus.projects.project import sdk_folder
from isthmus.projects.toolchain import Toolchain
from isthmus.projects.unwinding import without_exceptions

_NEEDED = ("py", "extmod", "lib/re1.5")
"""Folders of the archive that are unpacked, without those inside them."""
_EXTMOD = ("modbinascii.c", "modheapq.c", "modjson.c", "modrandom.c", "modre.c")
_REPLACED = re.compile(r"nlr[^.s]|cstack|stackctrl|pystack")
"""Sources for other machines, and those that `py.c` has in another way."""
_FLAGS = (
    *("-target", "wasm32-wasi", "-std=gnu11", "-Os", "-D_GNU_SOURCE", "-DNDEBUG", "-w"),
    *("-msimd128", "-mexception-handling", "-fno-exceptions"),
    *("-mllvm", "-wasm-enable-sjlj", "-mllvm", "-wasm-use-legacy-eh=false"),
)
_STACK_NBYTES = 1 << 18
_VERSION = """\
#define MICROPY_GIT_TAG "v1.25.0"
#define MICROPY_GIT_HASH ""
#define MICROPY_BUILD_DATE "2025-04-15"
"""
_NAMES = re.compile(r"MP_QSTR_([_a-zA-Z0-9]+)")
_MODULES = re.compile(r"MP_REGISTER_(?:EXTENSIBLE_)?MODULE(?:_DELEGATION)?\(.*?,\s*.*?\);")
_ROOTS = re.compile(r"MP_REGISTER_ROOT_POINTER\(.*?\);")


def compile_micropython(
    compiler: Toolchain, archive: Path, guest: Path, work: Path
) -> tuple[bytes, bytes]:
    """The module, and MicroPython's licence. Raises DownloadError, BuildFailed."""
    licence = _unpack(archive, work)
    sources = [it for it in sorted((work / "py").glob("*.c")) if not _REPLACED.match(it.name)]
    sources += [*(work / "extmod" / it for it in _EXTMOD), guest / "py.c"]
    flags = [*_FLAGS, *(f"-I{it}" for it in (guest, work, sdk_folder("c")))]
    _write_headers(compiler, flags, sources, work)
    made = work / "py.wasm"
    linking = ("-mexec-model=reactor", f"-Wl,-z,stack-size={_STACK_NBYTES}")
    run_compiler(compiler, ["cc", *flags, *linking, *sources, "-o", made], work, "py")
    return without_exceptions(made.read_bytes()), licence


def _unpack(archive: Path, folder: Path) -> bytes:
    """Writes what is needed into a folder. The licence."""
    licence = b""
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                path = PurePosixPath(*PurePosixPath(member.name).parts[1:])
                is_needed = str(path.parent) in _NEEDED or str(path) == "LICENSE"
                if not member.isfile() or not is_needed:
                    continue
                data = tar.extractfile(member)
                assert data is not None, "it is a file"
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(data.read())
        licence = (folder / "LICENSE").read_bytes()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DownloadError(f"cannot unpack MicroPython: {error}") from None
    return licence


def _write_headers(
    compiler: Toolchain, flags: Sequence[str], sources: Iterable[Path], work: Path
) -> None:
    """The generated headers."""
    folder = work / "genhdr"
    folder.mkdir()
    (folder / "mpversion.h").write_text(_VERSION)
    for name in ("qstrdefs.generated.h", "moduledefs.h", "root_pointers.h"):
        (folder / name).touch()
    includes = "".join(f'#include "{it.as_posix()}"\n' for it in sources)
    text = _preprocessed(compiler, [*flags, "-DNO_QSTR"], includes, work)
    found = {
        "moduledefs.h": ("makemoduledefs.py", _lines(_MODULES, text)),
        "root_pointers.h": ("make_root_pointers.py", _lines(_ROOTS, text)),
        "qstrdefs.generated.h": ("makeqstrdata.py", _names(compiler, flags, text, work)),
    }
    for name, (script, lines) in found.items():
        collected = folder / f"{name}.collected"
        collected.write_text(lines)
        (folder / name).write_text(_answer([sys.executable, work / "py" / script, collected]))


def _lines(pattern: re.Pattern[str], text: str) -> str:
    return "".join(f"{it}\n" for it in pattern.findall(text))


def _names(compiler: Toolchain, flags: Sequence[str], text: str, work: Path) -> str:
    """Python's names in the sources, and those that MicroPython always has."""
    always = (work / "py" / "qstrdefs.h").read_text()
    listed = always + "".join(f"Q({it})\n" for it in sorted(set(_NAMES.findall(text))))
    # A name in a text is none of the preprocessor's, which only leaves out what is switched off.
    hidden = re.sub(r"^Q\(.*\)", lambda it: f'"{it[0]}"', listed, flags=re.MULTILINE)
    shown = _preprocessed(compiler, flags, hidden, work)
    return re.sub(r'^"(Q\(.*\))"', r"\1", shown, flags=re.MULTILINE)


def _preprocessed(compiler: Toolchain, flags: Sequence[str], source: str, work: Path) -> str:
    path = work / "collected.c"
    path.write_text(source)
    result = work / "collected.i"
    run_compiler(compiler, ["cc", "-E", *flags, path, "-o", result], work, "py")
    return result.read_text(errors="replace")


def _answer(command: Sequence[str | Path]) -> str:
    """What a script of MicroPython prints."""
    done = subprocess.run(
        list(map(str, command)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BuildFailed(f"{command[1]} failed:\n{done.stderr.strip()[-2000:]}")
    return done.stdout
