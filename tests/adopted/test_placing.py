"""Buffers of libllama's contexts at addresses of ours."""

from __future__ import annotations

import ctypes
import threading

import pytest

from isthmus.errors import LibraryUnsupported
from isthmus.native import placing
from isthmus.native._ggml import DeviceType
from isthmus.native.loader import Candidate, Library
from isthmus.native.placing import Placing, placing_of

NBYTES = 8192


@pytest.fixture
def kind(library: Library) -> int:
    """The processor's buffer type."""
    cpu = library.ggml_backend_dev_by_type(DeviceType.CPU)
    return int(library.ggml_backend_dev_buffer_type(cpu))


@pytest.fixture
def room() -> ctypes.Array[ctypes.c_uint8]:
    return (ctypes.c_uint8 * (2 * NBYTES))(*[7] * (2 * NBYTES))


def address_in(room: ctypes.Array[ctypes.c_uint8]) -> int:
    return -(-ctypes.addressof(room) // 4096) * 4096


def test_buffers_lie_where_they_are_to(
    library: Library, kind: int, room: ctypes.Array[ctypes.c_uint8]
) -> None:
    at = address_in(room)
    with placing_of(library).open(lambda number, _: 0 if number else at) as placed:
        ours = library.ggml_backend_buft_alloc_buffer(kind, NBYTES)
        theirs = library.ggml_backend_buft_alloc_buffer(kind, 64)
        library.ggml_backend_buffer_clear(ours, 0)
    assert placed.sizes == [NBYTES, 64]
    assert placed.cleared == {0}
    assert library.ggml_backend_buffer_get_base(ours) == at
    assert set(room) == {7}, "whoever gives the memory clears it"
    for buffer in (ours, theirs):
        library.ggml_backend_buffer_free(buffer)
    after = library.ggml_backend_buft_alloc_buffer(kind, NBYTES)
    assert library.ggml_backend_buffer_get_base(after) != at
    library.ggml_backend_buffer_free(after)


def test_other_threads_get_memory_of_the_library(library: Library, kind: int) -> None:
    bases: list[int] = []

    def allocate() -> None:
        buffer = library.ggml_backend_buft_alloc_buffer(kind, NBYTES)
        bases.append(library.ggml_backend_buffer_get_base(buffer))
        library.ggml_backend_buffer_clear(buffer, 9)
        assert ctypes.string_at(bases[-1], 4) == b"\x09" * 4
        library.ggml_backend_buffer_free(buffer)
        bases.append(0)

    def refuse(_number: int, _nbytes: int) -> int:
        raise AssertionError("another thread's allocation")

    with placing_of(library).open(refuse) as placed:
        thread = threading.Thread(target=allocate)
        thread.start()
        thread.join()
    assert placed.sizes == []
    assert len(bases) == 2


def test_an_error_of_the_placing_is_raised(library: Library, kind: int) -> None:
    def fail(_number: int, _nbytes: int) -> int:
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"), placing_of(library).open(fail):
        assert not library.ggml_backend_buft_alloc_buffer(kind, NBYTES)


def test_one_thread_at_a_time(library: Library, kind: int) -> None:
    hooks, order = placing_of(library), []

    def second() -> None:
        with hooks.open(lambda _number, _nbytes: 0) as placed:
            order.append("second")
            library.ggml_backend_buffer_free(library.ggml_backend_buft_alloc_buffer(kind, 64))
        assert placed.sizes == [64]

    with hooks.open(lambda _number, _nbytes: 0):
        thread = threading.Thread(target=second)
        thread.start()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


@pytest.mark.parametrize(
    ("offset", "other"),
    [
        ("_ALLOC_AT", 32),
        ("_CLEAR_AT", 80),
        ("_TYPE_AT", 96),
        ("_INIT_AT", 48),
        ("_COMPUTE_AT", 136),
    ],
)
def test_a_library_with_another_layout_is_refused(
    offset: str, other: int, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placing, offset, other)
    with pytest.raises(LibraryUnsupported, match="lays out"):
        Placing(library)
    monkeypatch.undo()
    Placing(library)


def test_a_library_that_was_opened_twice_has_one_lock(library: Library) -> None:
    twin = Library(Candidate("another name", library.files))
    try:
        assert placing_of(twin) is placing_of(library)
    finally:
        library.llama_log_set(library._log.callback, None)
