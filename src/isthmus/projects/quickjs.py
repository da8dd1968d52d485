"""Compiles the guest `js`: `guests/js/js.c` with QuickJS-NG."""

from __future__ import annotations

import tarfile
from pathlib import Path

from isthmus.errors import DownloadError
from isthmus.projects.building import ZIG_FLAGS, run_compiler
from isthmus.projects.project import sdk_folder
from isthmus.projects.toolchain import Toolchain

_SOURCES = ("quickjs.c", "dtoa.c", "libregexp.c", "libunicode.c")
_WITHIN = "upstream-quickjs"
"""The folder of the sources in the archive."""
_STACK_NBYTES = 1 << 20
"""Bytes of the stack: an interpreter's functions call each other deeply."""


def compile_quickjs(
    compiler: Toolchain, archive: Path, guest: Path, work: Path
) -> tuple[bytes, bytes]:
    """The module, and QuickJS-NG's licence. Raises DownloadError, BuildFailed."""
    _unpack(archive, work)
    flags = (*ZIG_FLAGS, "-std=gnu11", "-Os", "-D_GNU_SOURCE", "-w", "-msimd128")
    headers = [f"-I{it}" for it in (work, sdk_folder("c"), guest)]
    sources = [*(work / it for it in _SOURCES), guest / "js.c"]
    made = work / "js.wasm"
    stack = f"-Wl,-z,stack-size={_STACK_NBYTES}"
    run_compiler(compiler, ["cc", *flags, stack, *headers, *sources, "-o", made], work, "js")
    # The archive has no file with QuickJS-NG's licence, but each of its sources begins with it.
    head, end, _ = (work / "quickjs.c").read_bytes().partition(b"*/")
    return made.read_bytes(), head + end + b"\n"


def _unpack(archive: Path, folder: Path) -> None:
    try:
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                if member.isfile() and Path(member.name).parent.name == _WITHIN:
                    data = tar.extractfile(member)
                    assert data is not None, "it is a file"
                    (folder / Path(member.name).name).write_bytes(data.read())
    except (tarfile.TarError, OSError) as error:
        raise DownloadError(f"cannot unpack QuickJS-NG: {error}") from None
