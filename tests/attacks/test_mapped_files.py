"""Model files that change while they are mapped: the process goes on, with the bytes it had."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from isthmus.config import ModelSettings
from isthmus.device import Device
from isthmus.errors import ModelFileError
from isthmus.memory import FileMapping, lease
from isthmus.memory.lease import State
from isthmus.model import Model
from tests.tiny_gguf import TinyLlama, TinyLora, TinyModel

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="leases are Linux's")
PATIENCE_S = 40
"""The kernel waits for 45 s, then the writer goes on all the same."""
TRUNCATE = "import os, sys; os.truncate(sys.argv[1], 4096)"
OVERWRITE = "import sys; f = open(sys.argv[1], 'r+b'); f.write(bytes(1 << 20))"


@pytest.fixture(autouse=True)
def with_leases(tmp_path: Path) -> None:
    (tmp_path / "probe").write_bytes(b"x")
    with FileMapping(tmp_path / "probe") as mapping:
        if mapping._file.state is not State.LEASED:
            pytest.skip("this file system, or this user, has no leases")


def attacked(path: Path, code: str) -> None:
    """Another process does it, and is held up until the mapping is safe."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=120)
    assert time.monotonic() - started < PATIENCE_S


def embedder() -> TinyModel:
    return TinyModel(architecture="bert", with_tokenizer=True)


def embedding(model: Model) -> np.ndarray:
    return model.embed([[5, 6, 7]])[0]


@pytest.mark.parametrize("code", [TRUNCATE, OVERWRITE])
def test_a_model_computes_on_with_what_it_had(device: Device, tmp_path: Path, code: str) -> None:
    path = embedder().write(tmp_path / "x.gguf")
    model = Model(device, path, ModelSettings())
    before = embedding(model)
    attacked(path, code)
    assert model.weights._mapping._file.state is State.COPIED
    assert np.array_equal(embedding(model), before)
    with pytest.raises(ModelFileError, match="was replaced or written to"):
        _ = model.weights_sha256
    model.close()


def test_every_mapping_of_a_file_is_saved(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    data = bytes(range(256)) * 4096
    path.write_bytes(data)
    with FileMapping(path) as first, FileMapping(path) as second:
        attacked(path, TRUNCATE)
        for mapping in (first, second):
            assert ctypes.string_at(mapping.base, mapping.nbytes) == data
            assert mapping.intact
    assert path.stat().st_size == 4096


def test_readers_see_no_gap(tmp_path: Path) -> None:
    """A thread reads while the copy takes the mapping's place."""
    path = tmp_path / "weights"
    data = bytes(range(256)) * 65_536
    path.write_bytes(data)
    wrong: list[int] = []
    done = threading.Event()
    with FileMapping(path) as mapping:

        def read() -> None:
            while not done.is_set():
                if ctypes.string_at(mapping.base, mapping.nbytes) != data:
                    wrong.append(1)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            attacked(path, TRUNCATE)
        finally:
            done.set()
            reader.join()
        assert mapping._file.state is State.COPIED
    assert not wrong


def test_a_writer_in_this_process_is_held_up_too(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"a" * 8192)
    with FileMapping(path) as mapping:
        path.write_bytes(b"b")
        assert ctypes.string_at(mapping.base, 8192) == b"a" * 8192


def no_memory() -> int:
    return 0


def test_without_memory_for_a_copy_the_model_fails_and_not_the_process(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = embedder().write(tmp_path / "x.gguf")
    model = Model(device, path, ModelSettings())
    embedding(model)
    monkeypatch.setattr(lease, "_free_nbytes", no_memory)
    attacked(path, TRUNCATE)
    with pytest.raises(ModelFileError, match="was written to while it was in use"):
        embedding(model)
    model.close()


def test_adapters_are_saved(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = TinyLlama(with_tokenizer=True)
    model = Model(device, base.write(tmp_path / "base.gguf"), ModelSettings())
    path = TinyLora(base).write(tmp_path / "lora.gguf")
    adapter = model.load_adapter(path)
    mapping = adapter.weights._mapping
    before = ctypes.string_at(mapping.base, mapping.nbytes)
    attacked(path, TRUNCATE)
    assert ctypes.string_at(mapping.base, mapping.nbytes) == before
    adapted = model.adapted({adapter: 1.0})
    adapted._require_intact()
    adapted.close()
    model.close()


def refused(_fd: int) -> bool:
    return False


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-64]),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
    ],
)
def test_without_a_lease_a_change_is_seen_before_the_next_pass(
    device: Device,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], object],
) -> None:
    monkeypatch.setattr(lease, "_take", refused)
    path = embedder().write(tmp_path / "x.gguf")
    model = Model(device, path, ModelSettings())
    embedding(model)
    time.sleep(0.02)  # a file's time has the grain of the kernel's tick
    change(path)
    with pytest.raises(ModelFileError, match="was written to while it was in use"):
        embedding(model)
    model.close()


def test_a_closed_mapping_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"a" * 8192)
    FileMapping(path).close()
    path.write_bytes(b"b")
    assert path.read_bytes() == b"b"


def test_a_file_that_is_replaced_stays_mapped(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"a" * 8192)
    (tmp_path / "new").write_bytes(b"b")
    with FileMapping(path) as mapping:
        (tmp_path / "new").replace(path)
        assert ctypes.string_at(mapping.base, 8192) == b"a" * 8192
        assert mapping._file.state is State.LEASED
