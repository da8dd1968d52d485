"""The bundled guests are what their sources say, and ask for nothing but the ABI and WASI."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import wasmtime

from isthmus import abi
from isthmus.errors import ToolchainMissing
from isthmus.projects.toolchain import find_wasm_opt
from isthmus.wasm.resumable import is_resumable

ROOT = Path(__file__).resolve().parents[2]
GUESTS = ROOT / "src" / "isthmus" / "guests"
NAMES = ("bench", "chat", "complete", "decode", "embed", "gemm", "speculate", "summarise")
FETCHED = ("js", "py")
"""Guests that are compiled on the user's machine: see `isthmus/runtime/scripts.py`."""
WIDE = ("bench64", "chat64", "complete64")
RESUMABLE = ("chat", "chat64", "complete", "complete64")
MAX_NBYTES = 128 * 1024


def has_wasm_opt() -> bool:
    try:
        find_wasm_opt(ROOT)
    except ToolchainMissing:
        return False
    return True


@pytest.fixture(scope="module")
def engine() -> wasmtime.Engine:
    return wasmtime.Engine()


@pytest.fixture(params=(*NAMES, *WIDE))
def path(request: pytest.FixtureRequest) -> Path:
    name = str(request.param)
    return GUESTS / name.removesuffix("64") / f"{name}.wasm"


def functions(module: wasmtime.Module) -> dict[str, tuple[list[str], list[str]]]:
    """A module's exported functions with their parameter and result types."""
    return {
        export.name: ([str(p) for p in export.type.params], [str(r) for r in export.type.results])
        for export in module.exports
        if isinstance(export.type, wasmtime.FuncType)
    }


def test_every_guest_is_listed() -> None:
    assert tuple(sorted(source.parent.name for source in GUESTS.glob("*/*.c"))) == tuple(
        sorted([*NAMES, *FETCHED])
    )
    assert tuple(sorted(path.stem for path in GUESTS.glob("*/*64.wasm"))) == WIDE


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("ziglang"), reason="ziglang is not installed")
@pytest.mark.skipif(not has_wasm_opt(), reason="wasm-opt is not here: make setup fetches it by npm")
def test_rebuilds_byte_for_byte(path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools/build_guests.py"), "--check", path.stem]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_imports_only_the_abi_and_wasi(path: Path, engine: wasmtime.Engine) -> None:
    known = {function.name: function for function in abi.HOST_FUNCTIONS}
    for imported in wasmtime.Module.from_file(engine, path).imports:
        assert imported.module in (abi.MODULE, "wasi_snapshot_preview1")
        assert isinstance(imported.type, wasmtime.FuncType)
        if imported.module == abi.MODULE:
            function = known[str(imported.name)]
            wide = path.stem in WIDE
            params = function.wasm_params_64 if wide else function.wasm_params
            assert tuple(str(p) for p in imported.type.params) == params
            assert [str(r) for r in imported.type.results] == [function.wasm_result]


def test_exports_what_a_guest_must(path: Path, engine: wasmtime.Engine) -> None:
    module = wasmtime.Module.from_file(engine, path)
    expected: dict[str, tuple[list[str], list[str]]] = {"on_message": (["i32"], ["i32"])}
    if path.stem not in WIDE:  # without a libc there is nothing to construct
        expected["_initialize"] = ([], [])
    if path.stem in ("chat", "chat64", "embed", "speculate", "summarise"):
        expected["on_replay"] = ([], ["i32"])
    if path.stem in ("chat", "chat64"):
        expected["on_options"] = ([], ["i32"])
    if path.stem in ("bench", "bench64"):
        expected["nop"] = (["i32"], ["i32"])
    if path.stem in RESUMABLE:
        pointer = "i64" if path.stem in WIDE else "i32"
        expected |= {f"asyncify_start_{it}": ([pointer], []) for it in ("unwind", "rewind")}
        expected |= {f"asyncify_stop_{it}": ([], []) for it in ("unwind", "rewind")}
        expected["asyncify_get_state"] = ([], ["i32"])
    assert is_resumable(path.read_bytes()) == (path.stem in RESUMABLE)
    assert functions(module) == expected
    memories = {e.name: e.type for e in module.exports if isinstance(e.type, wasmtime.MemoryType)}
    assert list(memories) == ["memory"]
    assert memories["memory"].limits.min == 2
    assert memories["memory"].limits.max is None
    assert memories["memory"].is_64 == (path.stem in WIDE)


def test_is_small_and_keeps_function_names_only(path: Path) -> None:
    module = path.read_bytes()
    assert len(module) <= MAX_NBYTES
    names = b"\x04name" in module
    assert names, "a trap's backtrace should name functions"
    for leak in (b".debug_", b"producers", b"/tmp", str(ROOT).encode()):
        assert leak not in module
