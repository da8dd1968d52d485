"""Compiles the bundled guest `js`, with the interpreter QuickJS-NG inside.

The interpreter's source comes from PyPI, in the source distribution of the package quickjs-ng, and
is compared with a hash; none of it is committed. It is under the MIT licence, which lies beside the
guest.

    python tools/build_js.py             compiles
    python tools/build_js.py --check     writes nothing; exits 1 if the result differs
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from build_guests import FLAGS_32, LEFT_OUT, ROOT, SDK
from isthmus.projects import open_project
from isthmus.wasm.card import with_card, without_sections

FOLDER = ROOT / "src" / "isthmus" / "guests" / "js"
PACKAGE = "quickjs-ng==0.17.0.2"
SHA256 = "43d2e48272208721a7aaea8e3f02d4b9318f12ef20cc4f5421b59d9a470706ef"
SOURCES = ("quickjs.c", "dtoa.c", "libregexp.c", "libunicode.c")
STACK_NBYTES = 1 << 20
"""Bytes of the stack: an interpreter's functions call each other deeply."""


def fetch(folder: Path) -> Path:
    """The folder with the interpreter's sources."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--no-binary", ":all:", "--dest", str(folder), PACKAGE]
    subprocess.run(command, check=True)
    (archive,) = folder.glob("*.tar.gz")
    if (found := hashlib.sha256(archive.read_bytes()).hexdigest()) != SHA256:
        raise SystemExit(f"{archive.name} has the hash {found}, not {SHA256}")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    (sources,) = folder.glob("*/upstream-quickjs")
    return sources


def write_prelude(folder: Path) -> None:
    """prelude.h: prelude.js as a string of C."""
    lines = (FOLDER / "prelude.js").read_text(encoding="utf-8").splitlines()
    text = "\n".join(f"    {json.dumps(line + chr(10))}" for line in lines)
    (folder / "prelude.h").write_text(f"static const char PRELUDE[] =\n{text};\n", encoding="utf-8")


def compile_guest() -> bytes:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        quickjs = fetch(folder)
        write_prelude(folder)
        output = folder / "js.wasm"
        flags = [
            *FLAGS_32,
            "-std=gnu11",
            "-Os",
            "-D_GNU_SOURCE",
            "-w",
            f"-Wl,-z,stack-size={STACK_NBYTES}",
        ]
        folders = [f"-I{it}" for it in (quickjs, SDK, folder)]
        sources = [str(quickjs / it) for it in SOURCES] + [str(FOLDER / "js.c")]
        command = [sys.executable, "-m", "ziglang", "cc", *flags, *folders, *sources]
        environment = {**os.environ, "ZIG_LOCAL_CACHE_DIR": str(folder / "cache")}
        subprocess.run([*command, "-o", str(output)], check=True, env=environment)
        module = without_sections(output.read_bytes(), LEFT_OUT)
        return with_card(module, open_project(FOLDER).card)


def main() -> int:
    parser = argparse.ArgumentParser(description="Compiles the guest js.")
    parser.add_argument("--check", action="store_true", help="only tell whether it differs")
    arguments = parser.parse_args()
    module, path = compile_guest(), FOLDER / "js.wasm"
    if not arguments.check:
        path.write_bytes(module)
        print(f"{path.relative_to(ROOT)}: {len(module):,} bytes")
        return 0
    if path.read_bytes() == module:
        return 0
    print(f"{path.relative_to(ROOT)} differs: run python tools/build_js.py")
    return 1


if __name__ == "__main__":
    sys.exit(main())
