"""Finding the library, and refusing one that is not known."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest

from isthmus.errors import LibraryNotFound, LibraryUnsupported
from isthmus.native import _llama, loader
from isthmus.native.loader import Library, candidates, open_library


def test_the_installed_library_is_known(library: Library) -> None:
    known = [ggml for ggml, _ in loader.KNOWN]
    assert ".".join(library.version.split(".")[:2]) in known
    assert open_library() is library


def test_only_listed_functions_are_bound(library: Library) -> None:
    with pytest.raises(AttributeError, match="not on the list"):
        library.ggml_abort  # noqa: B018


def test_explicit_path_comes_first(library: Library) -> None:
    found = next(candidates(str(library.path)))
    assert found.files == (library.path,)


def test_missing_paths(tmp_path: Path) -> None:
    with pytest.raises(LibraryNotFound, match="there is no ggml library at"):
        open_library(str(tmp_path / "none.so"))
    with pytest.raises(LibraryNotFound, match="has no libllama"):
        open_library(str(tmp_path))


def test_a_file_that_is_no_library(tmp_path: Path) -> None:
    path = tmp_path / "libllama.so"
    path.write_bytes(b"not a library")
    with pytest.raises(LibraryUnsupported, match=r"cannot open .* pip install"):
        open_library(str(path))


def test_another_library_says_what_is_missing() -> None:
    import ctypes.util

    other = ctypes.util.find_library("m")
    if other is None:
        pytest.skip("no libm found by name")
    resolved = subprocess.run(
        ["sh", "-c", f"ldconfig -p | grep -m1 '{other}' | sed 's/.*=> //'"],
        capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    if not resolved:
        pytest.skip("no path of libm")
    with pytest.raises(LibraryUnsupported, match="lacks ggml_version"):
        open_library(resolved)


def test_an_unknown_version_is_refused(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "KNOWN", {("0.1", "0.1"): _llama.ContextParams05})
    with pytest.raises(LibraryUnsupported) as refused:
        Library(loader.Candidate("a test", (library.path,)))
    assert library.version in str(refused.value)
    assert "pip install" in str(refused.value)


def test_other_layouts_are_refused(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = dict.fromkeys(loader.KNOWN, _llama.ContextParams05)
    monkeypatch.setattr(loader, "KNOWN", wrong)
    if library.version.startswith("0.25"):
        pytest.skip("this library has that layout")
    with pytest.raises(LibraryUnsupported, match="llama_context_params in an unknown way"):
        Library(loader.Candidate("a test", (library.path,)))


def test_errors_of_the_library_are_collected(library: Library, tmp_path: Path) -> None:
    from isthmus.native._ggml import GgufInitParams

    path = tmp_path / "x.gguf"
    path.write_bytes(b"XXXX" + bytes(64))
    with library.errors() as lines:
        assert not library.gguf_init_from_file(str(path).encode(), GgufInitParams(True, None))
    assert any("magic" in line for line in lines)


@pytest.mark.parametrize(
    ("missing", "said"),
    [("libgomp.so.1", "apt-get install libgomp1"), ("libnone.so.1", "Install one that is known")],
)
def test_a_library_that_the_system_lacks_is_named_with_its_package(
    missing: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(_: str) -> None:
        raise OSError(f"{missing}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    with pytest.raises(LibraryUnsupported, match=said):
        loader._open(tmp_path / "libggml.so")
