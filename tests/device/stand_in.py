"""A Mac without a Mac: `fake_metal.c` in the place of the ggml library, on `fake_pages.c`.

python -m tests.device.stand_in FOLDER    compiles both, and writes FOLDER/env for a shell
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

from isthmus.native.loader import open_library

SOURCES = Path(__file__).parent
SETTINGS = ("FAKE_METAL_DEVICES", "FAKE_METAL_LONGEST", "FAKE_METAL_MEMORY")
"""How many devices there are (1), bytes of `maxBufferLength` (256 MiB), bytes of all buffers."""


def build(folder: Path) -> dict[str, str]:
    """The variables with which a process has the stand-in; compiled where that was not done yet."""
    kernels = open_library().path
    sources = [SOURCES / name for name in ("fake_pages.c", "fake_metal.c")]
    texts = [*(it.read_bytes() for it in sources), str(kernels).encode()]
    folder = folder / hashlib.sha256(b"\0".join(texts)).hexdigest()[:16]
    pages, metal = folder / "libpages.so", folder / "libllama.so"
    for target, source, linked in ((pages, sources[0], ()), (metal, sources[1], (kernels,))):
        if not target.exists():
            _compile(target, source, *linked)
    return {
        "LD_PRELOAD": str(pages),
        "ISTHMUS_GGML": str(metal),
        "ISTHMUS_TEST_DEVICE": "metal",
    }


def _compile(target: Path, source: Path, *linked: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(f".{os.getpid()}")
    command = [sys.executable, "-m", "ziglang", "cc", "-shared", "-fPIC", "-O1", "-o", str(part)]
    subprocess.run([*command, str(source), *map(str, linked)], check=True)
    part.replace(target)


if __name__ == "__main__":
    where = Path(sys.argv[1]).absolute()
    variables = build(where)
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()]
    (where / "env").write_text("".join(lines))
