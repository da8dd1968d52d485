"""What can be known of Metal without a Mac: that the macOS wheels hold what our code calls.

The wheels are downloaded and read, never run.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from importlib.metadata import requires
from pathlib import Path

import lief
import pytest

from isthmus.device.metal import MetalDevice
from isthmus.native import _ggml, _llama, metal
from isthmus.native.loader import KNOWN

MOV_W0_368, RET = 0x52802E00, 0xD65F03C0
"""arm64: what `return 368;` is compiled to."""
MACOS = [f"macosx_{major}_0_{chip}" for major in range(11, 16) for chip in ("arm64", "universal2")]


def download(requirement: str, folder: Path) -> zipfile.ZipFile:
    platforms = [f"--platform={name}" for name in (*MACOS, "macosx_10_9_universal2")]
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
        *("--disable-pip-version-check", "--only-binary=:all:", "--python-version=3.11"),
        *("--implementation=cp", "--abi=cp311", "--abi=abi3", *platforms),
        *(f"--dest={folder}", requirement),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(folder.glob("*.whl")))


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> lief.MachO.Binary:
    """The ggml library in the macOS wheel of the release that this project pins."""
    [pinned] = [it for it in requires("isthmus") or () if it.startswith("xllamacpp")]
    wheel = download(pinned.split(";")[0], tmp_path_factory.mktemp("ggml"))
    [name] = [name for name in wheel.namelist() if name.endswith("xllamacpp.abi3.so")]
    found = lief.MachO.parse(list(wheel.read(name)))
    assert found is not None
    return found.at(0)


@pytest.fixture(scope="module")
def raw(binary: lief.MachO.Binary) -> bytes:
    return b"".join(bytes(section.content) for section in binary.sections)


def test_every_function_is_exported(binary: lief.MachO.Binary) -> None:
    exported = {symbol.name for symbol in binary.exported_symbols}
    called = [*_ggml.FUNCTIONS, *_llama.functions(next(iter(KNOWN.values())))]
    assert len(called) > 100
    assert [name for name in called if f"_{name}" not in exported] == []


def test_a_tensor_is_as_large_as_ours(binary: lief.MachO.Binary) -> None:
    address = binary.get_symbol("_ggml_tensor_overhead").value
    code = bytes(binary.get_content_from_virtual_address(address, 8))
    words = [int.from_bytes(code[at : at + 4], "little") for at in (0, 4)]
    assert words == [MOV_W0_368, RET]
    assert _ggml.TENSOR_OVERHEAD == 368


def test_versions_procedures_and_the_backend_are_there(raw: bytes) -> None:
    assert any(f"{ggml}.".encode() in raw for ggml, _ in KNOWN)
    assert f"\0{MetalDevice.kind.registry}\0".encode() in raw
    for name in _ggml.CPU_PROCEDURES:
        assert f"\0{name}\0".encode() in raw, name
    assert b"newBufferWithBytesNoCopy:length:options:deallocator:" in raw
    assert b"maxBufferLength" in raw


def test_selectors_are_those_of_pyobjc(tmp_path: Path) -> None:
    """What `native/metal.py` calls, against the tables that PyObjC itself uses."""
    metadata = download("pyobjc-framework-Metal", tmp_path).read("Metal/_metadata.py").decode()
    called = {
        node.func.attr
        for node in ast.walk(ast.parse(Path(metal.__file__).read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    selector = "newBufferWithBytesNoCopy:length:options:deallocator:"
    assert selector.replace(":", "_") in called
    assert f'b"{selector}"' in metadata
    registered = metadata[metadata.index(f'b"{selector}"') :][:400]
    assert '2: {"type": b"^v", "type_modifier": b"n", "c_array_length_in_arg": 3}' in registered
    assert "contents" in called
    contents = metadata[metadata.index('b"contents"') :][:200]
    assert '"retval": {"type": b"^v", "c_array_of_variable_length": True}' in contents
    assert '"MTLCreateSystemDefaultDevice"' in metadata
    assert "MTLResourceStorageModeShared@0" in metadata
