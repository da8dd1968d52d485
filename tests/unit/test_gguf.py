"""Malformed, truncated and foreign model files: a typed error with the reason, never a crash."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from isthmus.config import ModelSettings
from isthmus.device import Device
from isthmus.errors import ModelError, ModelFileError, ModelNotFound, ModelUnsupported
from isthmus.file_hash import FileHashes
from isthmus.model import open_model
from isthmus.model.files.gguf import GgufFile
from isthmus.native.loader import Library
from tests.tiny_gguf import TinyLlama


class Untried(FileHashes):
    """Files are opened here at once, so that this process shows what it survives by itself."""

    def recall(
        self,
        path: Path | Sequence[Path],
        kind: str,
        compute: Callable[[Path], str],
        accept: Callable[[str], bool],
    ) -> str:
        return "null"  # a graph of ours


def load(device: Device, path: Path) -> None:
    open_model(device, path, ModelSettings(), Untried()).close()


def test_reads_metadata_and_places(library: Library, tiny: Path) -> None:
    file = GgufFile(library, tiny)
    assert file.version == 3
    assert file.metadata["general.architecture"] == "llama"
    assert file.metadata["llama.block_count"] == 2
    assert file.metadata["llama.rope.freq_base"] == 10_000.0
    info = file.tensors["blk.1.ffn_down.weight"]
    assert info.shape == (96, 64)
    assert info.nbytes == 4 * 96 * 64
    assert info.offset % 32 == 0


def test_missing_file_and_folder(library: Library, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="there is no file"):
        GgufFile(library, tmp_path / "none.gguf")
    with pytest.raises(ModelNotFound, match="is a folder"):
        GgufFile(library, tmp_path)


def test_empty_and_foreign_files(library: Library, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for content in (b"", b"G", b"\x7fELF" + bytes(100), b"hello, this is text" * 10):
        path.write_bytes(content)
        with pytest.raises(ModelFileError):
            GgufFile(library, path)


@pytest.mark.parametrize("version", [0, 1, 4, 99, 0x03000000])
def test_unknown_version(version: int, library: Library, tiny: Path, tmp_path: Path) -> None:
    data = bytearray(tiny.read_bytes())
    data[4:8] = struct.pack("<I", version)
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match=r"version|GGUF"):
        GgufFile(library, path)


def test_truncated_anywhere(device: Device, tiny: Path, tmp_path: Path) -> None:
    data = tiny.read_bytes()
    path = tmp_path / "x.gguf"
    cuts = sorted({*range(0, 600, 37), *range(600, len(data), 4099), len(data) - 1})
    for cut in cuts:
        path.write_bytes(data[:cut])
        with pytest.raises(ModelFileError):
            load(device, path)


def test_counts_that_claim_terabytes(library: Library, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for offset in (8, 16):  # number of tensors, number of metadata pairs
        data = bytearray(tiny.read_bytes())
        data[offset : offset + 8] = struct.pack("<Q", 1 << 60)
        path.write_bytes(data)
        with pytest.raises(ModelFileError):
            GgufFile(library, path)


@pytest.mark.slow
def test_flipped_bytes_never_crash(device: Device, tiny: Path, tmp_path: Path) -> None:
    """Every header byte set to other values: the model loads or is refused with a typed error."""
    data = tiny.read_bytes()
    header = GgufFile(device.library, tiny)
    first_tensor = min(info.offset for info in header.tensors.values())
    path = tmp_path / "x.gguf"
    refused = 0
    for position in range(0, first_tensor, 29):
        for value in (0x00, 0xFF):
            damaged = bytearray(data)
            damaged[position] = value
            path.write_bytes(damaged)
            try:
                load(device, path)
            except ModelError:
                refused += 1
    assert refused > 20


def test_tensor_beyond_the_file(library: Library, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(tiny.read_bytes()[:-64])
    with pytest.raises(ModelFileError, match=r"truncated: tensor .* ends at byte"):
        GgufFile(library, path)


def test_an_architecture_without_a_graph_of_ours(device: Device, tmp_path: Path) -> None:
    path = TinyLlama(architecture="mamba").write(tmp_path / "x.gguf")
    with pytest.raises(ModelUnsupported, match=r"'mamba', .* --graph adopted"):
        load(device, path)


def test_tensor_that_nobody_knows(device: Device, tmp_path: Path) -> None:
    path = TinyLlama(extra_tensors=("blk.0.attn_q_norm.weight",)).write(tmp_path / "x.gguf")
    with pytest.raises(ModelUnsupported, match=r"such as blk\.0\.attn_q_norm"):
        load(device, path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", 3),
        ("block_count", 0),
        ("block_count", 1 << 31),
        ("embedding_length", 128),
        ("attention.head_count", 3),
        ("attention.head_count", 0),
        ("attention.head_count_kv", 3),
        ("attention.key_length", 7),
        ("feed_forward_length", 97),
        ("rope.dimension_count", 16),
        ("expert_count", 8),
        ("context_length", 0),
    ],
)
def test_shapes_that_do_not_fit(key: str, value: int, device: Device, tmp_path: Path) -> None:
    """ggml would abort the process on such a graph; the file is refused before one is built."""
    model = TinyLlama()
    attribute = {
        "block_count": "n_layer",
        "embedding_length": "n_embd",
        "attention.head_count": "n_head",
        "attention.head_count_kv": "n_head_kv",
        "feed_forward_length": "n_ff",
        "context_length": "n_ctx",
    }.get(key)
    path = _with_metadata(model, tmp_path / "x.gguf", key, value, attribute)
    with pytest.raises(ModelError):
        load(device, path)


def _with_metadata(
    model: TinyLlama, path: Path, key: str, value: int, attribute: str | None
) -> Path:
    """The file of `model` with one number changed in its metadata, its tensors as they were."""
    if attribute is None and key == "expert_count":
        model.overrides[key] = value
        return model.write(path)
    model.write(path)
    data = bytearray(path.read_bytes())
    name = f"llama.{key}".encode()
    at = data.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)
    assert struct.unpack_from("<I", data, at)[0] == 4  # uint32
    struct.pack_into("<I", data, at + 4, value)
    path.write_bytes(data)
    return path


def test_unknown_rope_scaling_is_refused_before_the_library_aborts(
    device: Device, tmp_path: Path
) -> None:
    path = TinyLlama(rope_scaling={"type": "spiral"}, with_tokenizer=True).write(
        tmp_path / "x.gguf"
    )
    with pytest.raises(ModelUnsupported, match="rope scaling 'spiral' is not known"):
        load(device, path)


def test_unknown_tensor_type(library: Library, tiny: Path, tmp_path: Path) -> None:
    data = bytearray(tiny.read_bytes())
    name = b"blk.0.ffn_up.weight"
    at = data.index(struct.pack("<Q", len(name)) + name) + 8 + len(name) + 4 + 16
    for kind in (24, 9999):  # I8, which no weight has, and one that does not exist
        struct.pack_into("<I", data, at, kind)
        path = tmp_path / "x.gguf"
        path.write_bytes(data)
        with pytest.raises(ModelError):
            GgufFile(library, path)
