"""Compiles the bundled guests, src/isthmus/guests/<name>/<name>.c, to the .wasm beside each.

Some are compiled a second time, with a 64-bit memory, to <name>64.wasm: the same source for
contexts whose KV cache does not fit into 4 GiB.

The same sources give the same bytes on every machine: the compiler is pinned (the `ziglang`
package), and so is wasm-opt (npm's `binaryen`), which makes some resumable. No debug information is
kept, and of the custom sections only the function names, which a trap's backtrace shows, and the
card of `isthmus.toml` beside each source.

    python tools/build_guests.py [name ...]     compiles
    python tools/build_guests.py --check        writes nothing; exits 1 and names what differs
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from isthmus.errors import ToolchainMissing
from isthmus.projects import open_project
from isthmus.projects.building import make_resumable
from isthmus.projects.toolchain import find_wasm_opt
from isthmus.wasm.card import with_card, without_sections

ROOT = Path(__file__).resolve().parent.parent
GUESTS = ROOT / "src" / "isthmus" / "guests"
SDK = ROOT / "src" / "isthmus" / "sdk" / "c"

ZIG_VERSION = "0.17.1"
STACK_NBYTES = 65_536
"""The stack lies at offset 0, below the data: overflowing it traps instead of changing data."""

FLAGS = (
    *("-msimd128", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"),
    f"-Wl,-z,stack-size={STACK_NBYTES}",
)
FLAGS_32 = ("-target", "wasm32-wasi", "-mexec-model=reactor")
FLAGS_64 = (
    *("-target", "wasm64-freestanding", "-ffreestanding", "-mbulk-memory", "-g0"),
    *("-Wl,--no-entry", "-isystem", str(SDK / "wasm64")),
)
"""There is no wasi-libc for wasm64: the few functions that guests use are in the SDK."""

LEFT_OUT = (".debug", "producers", "target_features")
"""Custom sections that are left out; the names of functions stay."""

FETCHED = ("js", "py")
"""Guests whose sources are not all here: `isthmus pull js` compiles one, on the user's machine."""

WIDE = ("bench", "chat", "complete")
"""What is compiled with a 64-bit memory, too."""


RESUMABLE = ("chat", "complete")
"""Guests whose answers can be saved between two tokens."""
BINARYEN_VERSION = "132"


def names() -> list[str]:
    """The bundled guests that are compiled here."""
    found = [path.parent.name for path in GUESTS.glob("*/*.c") if path.stem not in FETCHED]
    return sorted([*found, *(f"{name}64" for name in WIDE)])


def folder_of(name: str) -> Path:
    return GUESTS / name.removesuffix("64")


def source(name: str) -> Path:
    return folder_of(name) / f"{name.removesuffix('64')}.c"


def binary(name: str) -> Path:
    return folder_of(name) / f"{name}.wasm"


def compile_guest(name: str) -> bytes:
    """The bytes of a guest, compiled afresh. Zig keeps only its own libraries in its cache."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / f"{name}.wasm"
        flags = (*(FLAGS_64 if name.endswith("64") else FLAGS_32), *FLAGS)
        command = [sys.executable, "-m", "ziglang", "cc", *flags, "-I", str(SDK)]
        environment = {**os.environ, "ZIG_LOCAL_CACHE_DIR": folder}
        subprocess.run(
            [*command, str(source(name)), "-o", str(output)], check=True, env=environment
        )
        module = without_sections(output.read_bytes(), LEFT_OUT)
        if folder_of(name).name in RESUMABLE:
            module = make_resumable(module, find_wasm_opt(ROOT), name)
        return with_card(module, open_project(folder_of(name)).card)


def main() -> int:
    parser = argparse.ArgumentParser(description="Compiles the bundled guests.")
    parser.add_argument("--check", action="store_true", help="only name guests that differ")
    parser.add_argument("name", nargs="*", help="which guests; by default all")
    arguments = parser.parse_args()
    if (found := importlib.metadata.version("ziglang")) != ZIG_VERSION:
        parser.error(f"ziglang is {found}: install ziglang=={ZIG_VERSION}")
    try:
        wasm_opt = find_wasm_opt(ROOT)
    except ToolchainMissing as error:
        parser.error(str(error))
    said = subprocess.run([*wasm_opt.command, "--version"], capture_output=True, check=True)
    if f"version {BINARYEN_VERSION} ".encode() not in said.stdout:
        parser.error(f"{said.stdout.decode().strip()}: npm install --prefix .venv binaryen@132.0.0")
    status = 0
    for name in arguments.name or names():
        module = compile_guest(name)
        if not arguments.check:
            binary(name).write_bytes(module)
            print(f"{binary(name).relative_to(ROOT)}: {len(module):,} bytes")
        elif not binary(name).exists() or binary(name).read_bytes() != module:
            print(f"{binary(name).relative_to(ROOT)} differs: run python tools/build_guests.py")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
