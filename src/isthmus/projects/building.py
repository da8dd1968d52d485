"""Compiles a project: its language's compiler, then the card that says what the guest takes.

A module keeps the names of its functions, which a trap's backtrace shows. With `debug` it also
keeps DWARF, from which files and lines come, and is compiled without optimisation.

A `resumable` one is changed by Binaryen's wasm-opt, so that an answer can be saved between two
tokens: see `wasm/resumable.py`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from isthmus.errors import BuildFailed, ProjectError, SettingsError, ToolchainMissing
from isthmus.projects.project import SDK, Project
from isthmus.projects.toolchain import (
    Toolchain,
    find_asc,
    find_cargo,
    find_go,
    find_wasm_opt,
    find_zig,
)
from isthmus.wasm.card import with_card, without_sections
from isthmus.wasm.resumable import OPTIONS

STACK_NBYTES = 65_536
LEFT_OUT = (".debug", "producers", "target_features", "sourceMappingURL", "external_debug_info")
ZIG_FLAGS = ("-target", "wasm32-wasi", "-mexec-model=reactor")
_SHOWN_LINES = 30


def build(project: Project, *, debug: bool = False, resumable: bool = False) -> Path:
    """Compiles a project and returns its module, which is written whole or not at all.

    Raises ToolchainMissing, BuildFailed with the compiler's words, ProjectError; SettingsError for
    one that would be `debug` and `resumable`, whose DWARF would be of other code.
    """
    if debug and resumable:
        raise SettingsError("a resumable guest tells no lines: build it without --debug")
    wasm_opt = find_wasm_opt(project.folder) if resumable else None
    with tempfile.TemporaryDirectory(prefix="isthmus-build-") as folder:
        made = Path(folder) / "guest.wasm"
        _COMPILERS[project.lang](project, made, debug)
        try:
            module = made.read_bytes()
        except OSError as error:
            raise BuildFailed(f"the compiler made no module of {project.name}: {error}") from None
        if wasm_opt is not None:
            module = make_resumable(module, wasm_opt, project.name)
    module = module if debug else without_sections(module, LEFT_OUT)
    partial = project.output.with_suffix(".wasm.partial")
    try:
        partial.write_bytes(with_card(module, project.card))
        partial.replace(project.output)
    except OSError as error:
        raise ProjectError(f"cannot write {project.output}: {error.strerror}") from None
    return project.output


def make_resumable(module: bytes, wasm_opt: Toolchain, name: str) -> bytes:
    """The module, changed so that its stack can be saved. BuildFailed with wasm-opt's words."""
    with tempfile.TemporaryDirectory(prefix="isthmus-resumable-") as folder:
        before, after = Path(folder) / "before.wasm", Path(folder) / "after.wasm"
        before.write_bytes(without_sections(module, LEFT_OUT))
        run_compiler(wasm_opt, [*OPTIONS, before, "-o", after], Path(folder), name)
        return after.read_bytes()


def _sources(project: Project, *suffixes: str) -> list[str]:
    found = [it for it in sorted((project.folder / "src").rglob("*")) if it.suffix in suffixes]
    if not found:
        raise ProjectError(f"there is no {suffixes[0]} file in {project.folder / 'src'}")
    return [str(it.relative_to(project.folder)) for it in found]


def _build_c(project: Project, output: Path, debug: bool) -> None:
    compiler, suffixes = ("cc", (".c",)) if project.lang == "c" else ("c++", (".cpp", ".c"))
    flags = ("-g", "-O1") if debug else ("-O2",)
    flags = (
        *ZIG_FLAGS,
        *flags,
        "-msimd128",
        "-Wall",
        "-Wextra",
        f"-Wl,-z,stack-size={STACK_NBYTES}",
    )
    _run(
        find_zig(),
        [compiler, *flags, "-I", SDK, *_sources(project, *suffixes), "-o", output],
        project,
    )


def _build_zig(project: Project, output: Path, debug: bool) -> None:
    mode = "Debug" if debug else "ReleaseSmall"
    modules = ("--dep", "isthmus", "-Mroot=src/main.zig", f"-Misthmus={SDK}/isthmus.zig")
    flags = (*ZIG_FLAGS, "-fno-entry", "-rdynamic", "-O", mode, "--stack", str(STACK_NBYTES))
    _run(find_zig(), ["build-exe", *flags, *modules, f"-femit-bin={output}"], project)


def _build_rust(project: Project, output: Path, debug: bool) -> None:
    cargo = find_cargo()
    profile = () if debug else ("--release",)
    target = output.parent if debug else project.folder / "target"
    command = ["build", *profile, "--target", cargo.target, "--target-dir", target]
    try:
        _run(cargo, command, project)
    except BuildFailed as error:
        if "linker `rust-lld` not found" in str(error):
            raise ToolchainMissing(
                "Rust's linker for WebAssembly, rust-lld, is not here: on Debian apt install lld"
            ) from None
        raise
    made = target / cargo.target / ("debug" if debug else "release")
    shutil.copyfile(made / f"{project.name.replace('-', '_')}.wasm", output)


def _build_go(project: Project, output: Path, debug: bool) -> None:
    flags = () if debug else ("-trimpath", "-ldflags=-s -w")
    _run(find_go(), ["build", "-buildmode=c-shared", *flags, "-o", output, "."], project)


def _build_as(project: Project, output: Path, debug: bool) -> None:
    flags = ("--debug",) if debug else ("-O2",)
    use = ("--use", f"abort={SDK}/index/abort", "--runtime", "incremental")
    _run(find_asc(project.folder), ["assembly/index.ts", "-o", output, *flags, *use], project)


_COMPILERS: dict[str, Callable[[Project, Path, bool], None]] = {
    "c": _build_c,
    "cpp": _build_c,
    "zig": _build_zig,
    "rust": _build_rust,
    "go": _build_go,
    "as": _build_as,
}


def _run(toolchain: Toolchain, arguments: Sequence[str | Path], project: Project) -> None:
    run_compiler(toolchain, arguments, project.folder, project.name)


def run_compiler(
    toolchain: Toolchain, arguments: Sequence[str | Path], folder: Path, name: str
) -> None:
    """Runs a compiler in a folder. BuildFailed with the end of what it said of `name`."""
    try:
        done = subprocess.run(
            [*toolchain.command, *map(str, arguments)],
            cwd=folder,
            env={**os.environ, **toolchain.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise BuildFailed(f"{toolchain.command[0]} cannot be run: {error.strerror}") from None
    if done.returncode:
        said = "\n".join(done.stdout.strip().splitlines()[-_SHOWN_LINES:])
        raise BuildFailed(f"{name} does not compile:\n{said}")
