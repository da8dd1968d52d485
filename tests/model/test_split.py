"""A model in several files: opened by any of them, as the whole file is, or refused by name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from isthmus.config import ModelSettings
from isthmus.device import Device
from isthmus.errors import ModelFileError, ModelNotFound
from isthmus.file_hash import FileHashes, file_sha256
from isthmus.model import Model, open_model
from isthmus.model.files.gguf import GgufFile
from isthmus.native.loader import Library
from isthmus.shards import ShardName, first_file, model_files, model_name, models_in
from tests.split_gguf import Split, split
from tests.tiny_gguf import TinyLlama, TinyModel

TEXT = [5, 6, 7]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that makes embeddings, since one pass of it needs no guest."""
    model = TinyModel(architecture="bert", with_tokenizer=True)
    return model.write(tmp_path_factory.mktemp("whole") / "whole.gguf")


@pytest.fixture
def shards(whole: Path, tmp_path: Path) -> list[Path]:
    return split(whole, tmp_path)


def embedding(model: Model) -> np.ndarray:
    return model.embed([TEXT])[0]


@pytest.mark.parametrize("given", [0, 2, "folder"])
def test_any_shard_and_the_folder_name_the_model(
    given: int | str, device: Device, whole: Path, shards: list[Path]
) -> None:
    path = shards[0].parent if isinstance(given, str) else shards[given]
    model, same = (open_model(device, it, ModelSettings()) for it in (path, whole))
    assert model.path == shards[0]
    assert model.file.files == tuple(shards)
    assert {it.shard for it in model.file.tensors.values()} == {0, 1, 2, 3}
    metadata = {k: v for k, v in model.file.metadata.items() if not k.startswith("split.")}
    assert metadata == same.file.metadata
    assert np.array_equal(embedding(model), embedding(same))
    assert model.weights.nbytes == same.weights.nbytes
    assert model.tokenizer.encode("the cat") == same.tokenizer.encode("the cat")
    model.close()
    same.close()


def test_a_first_shard_without_tensors(device: Device, whole: Path, tmp_path: Path) -> None:
    """As `llama-gguf-split --no-tensor-first-split` writes it."""
    parts = Split(whole)
    tensors, parts.tensors = parts.tensors, []
    said = {"tensors.count": len(tensors), "count": 2}
    first, _ = parts.write(tmp_path, "x", 2, {0: said})
    parts.tensors = tensors
    rest = parts.write(tmp_path, "y", 1, {0: {"no": 1, "count": 2}})[0]
    rest.replace(tmp_path / "x-00002-of-00002.gguf")
    # the later shard has the metadata too, which says the same
    model = open_model(device, first, ModelSettings())
    assert len(model.file.tensors) == len(tensors)
    model.close()


def test_hashes_are_of_all_shards(device: Device, whole: Path, shards: list[Path]) -> None:
    model = open_model(device, shards[1], ModelSettings())
    before, same = model.weights_sha256, open_model(device, whole, ModelSettings())
    assert before != same.weights_sha256 == file_sha256(whole)
    assert model.tokenizer_sha256
    model.close()
    same.close()
    data = bytearray(shards[3].read_bytes())
    data[-1] ^= 1
    shards[3].write_bytes(data)
    changed = open_model(device, shards[0], ModelSettings())
    assert changed.weights_sha256 != before
    changed.close()


def test_what_was_found_out_is_kept_for_all_shards(shards: list[Path], tmp_path: Path) -> None:
    hashes, asked = FileHashes(tmp_path / "hashes"), []
    for it in shards:
        os.utime(it, (1, 1))

    def find_out(first: Path) -> str:
        asked.append(first)
        return "a" * 64

    for _ in range(2):
        hashes.get(shards, "kind", find_out)
    assert asked == [shards[0]]
    os.utime(shards[2], (2, 2))
    hashes.get(shards, "kind", find_out)
    assert len(asked) == 2


def test_links_of_a_hub_lead_away_from_the_shards(
    device: Device, shards: list[Path], tmp_path: Path
) -> None:
    """The other shards lie beside the link's name, not beside what it leads to."""
    snapshot, blobs = tmp_path / "snapshots" / "rev", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for n, it in enumerate(shards):
        it.replace(blobs / f"hash{n}")
        (snapshot / it.name).symlink_to(f"../../blobs/hash{n}")
    model = open_model(device, snapshot / shards[2].name, ModelSettings())
    assert model.path == snapshot / shards[0].name
    assert model.name == "tiny"
    model.close()
    short = tmp_path / "short.gguf"
    short.symlink_to(snapshot / shards[1].name)
    assert model_files(short)[0] == snapshot / shards[0].name
    with pytest.raises(ModelFileError, match="one of 4 shards, and its name does not"):
        open_model(device, blobs / "hash0", ModelSettings())


def test_names_of_any_kind(device: Device, whole: Path, tmp_path: Path) -> None:
    odd = ["a=b c:d.gguf", os.fsdecode(b"\xff\xfe.gguf"), "-00001-of-00001.gguf", "ü.gguf"]
    for name in odd:
        path = tmp_path / name
        try:
            shutil.copyfile(whole, path)
        except OSError:
            continue  # file names are UTF-8 here
        model = open_model(device, path, ModelSettings())
        assert embedding(model).size
        model.close()
    shards = split(whole, tmp_path, os.fsdecode(b"\xff = 1: 2"))
    open_model(device, shards[3], ModelSettings()).close()


# ---------------------------------------------------------------------------------- refusals


def swap(shards: list[Path]) -> None:
    spare = shards[1].with_name("spare")
    shards[1].rename(spare)
    shards[2].rename(shards[1])
    spare.rename(shards[2])


def of_another_model(shards: list[Path]) -> None:
    folder = shards[0].parent
    TinyLlama(with_tokenizer=True).write(folder / "other")
    other = Split(folder / "other").write(folder, "other", 4)
    other[2].replace(shards[2])
    for it in (folder / "other", *other[:2], other[3]):
        it.unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda it: it[2].unlink(), r"lacks 1: split-00003-of-00004\.gguf\. Fetch"),
        (lambda it: it[0].unlink(), r"lacks 1: split-00001-of-00004\.gguf\. Fetch"),
        (swap, r"split-00002-of-00004\.gguf is named as shard 2 of 4, .* it is shard 3"),
        (lambda it: shutil.copyfile(it[1], it[3]), r"named as shard 4 of 4, .* it is shard 2"),
        (of_another_model, r"split-00003-of-00004\.gguf is a shard of another model"),
        (lambda it: it[1].write_bytes(it[1].read_bytes()[:-64]), r"split-00002-.* truncated"),
        (lambda it: it[3].write_bytes(b"GGUF"), r"split-00004-.* not a usable GGUF file"),
        (
            lambda it: [path.unlink() for path in it[1:]],
            r"lacks 3: split-00002-of-00004\.gguf, split-00003",
        ),
    ],
)
def test_shards_that_are_not_one_model(
    damage: Callable[[list[Path]], object], said: str, library: Library, shards: list[Path]
) -> None:
    damage(shards)
    with pytest.raises((ModelFileError, ModelNotFound), match=said):
        GgufFile(library, next(it for it in shards if it.exists()))


@pytest.mark.parametrize(
    ("lies", "said"),
    [
        ({1: {"count": 5}}, r"00002-of-00004\.gguf is named as one of 4 shards, .* there are 5"),
        ({0: {"count": 0}}, r"00001-of-00004\.gguf .* is a whole model"),
        ({2: {"no": 0}}, r"00003-of-00004\.gguf is named as shard 3 of 4, .* it is shard 1"),
        ({n: {"tensors.count": 9} for n in range(4)}, r"have 9 tensors together, and they have"),
        ({3: {"tensors.count": 9}}, r"00004-of-00004\.gguf is a shard of another model"),
    ],
)
def test_shards_that_lie(
    lies: dict[int, dict[str, int]], said: str, library: Library, whole: Path, tmp_path: Path
) -> None:
    paths = Split(whole).write(tmp_path, "x", 4, lies)
    with pytest.raises(ModelFileError, match=said):
        GgufFile(library, paths[0])


def test_a_tensor_in_two_shards(library: Library, whole: Path, tmp_path: Path) -> None:
    parts = Split(whole)
    parts.tensors[-1] = parts.tensors[0]
    paths = parts.write(tmp_path, "x", 2)
    name = r"x-00002-of-00002\.gguf holds the tensor \S+, which x-00001-of-00002\.gguf has too"
    with pytest.raises(ModelFileError, match=name):
        GgufFile(library, paths[0])


def test_a_whole_model_that_is_named_as_a_shard(
    library: Library, whole: Path, tmp_path: Path
) -> None:
    for n in (1, 2):
        shutil.copyfile(whole, tmp_path / f"x-0000{n}-of-00002.gguf")
    with pytest.raises(ModelFileError, match="give it a name without -of-"):
        GgufFile(library, tmp_path / "x-00001-of-00002.gguf")


def test_a_shard_that_changes_is_noticed(library: Library, shards: list[Path]) -> None:
    file = GgufFile(library, shards[0])
    file.require_unchanged()
    os.utime(shards[3], (1, 1))
    with pytest.raises(ModelFileError, match=r"00004-of-00004\.gguf was replaced"):
        file.require_unchanged()


# ---------------------------------------------------------------------------------- names


def test_the_names_of_shards() -> None:
    name = ShardName.try_parse("a-00001-of-00002-00002-of-00003.gguf")
    assert name is not None
    assert (name.stem, name.number, name.count) == ("a-00001-of-00002", 2, 3)
    assert str(name.all()[2]) == "a-00001-of-00002-00003-of-00003.gguf"
    for other in ("a.gguf", "a-1-of-2.gguf", "-00001-of-00002.gguf", "a-00001-of-00002.bin"):
        assert ShardName.try_parse(other) is None
    assert model_name(Path("/x/a-00001-of-00002.gguf")) == model_name(Path("a.gguf")) == "a"


@pytest.mark.parametrize("name", ["x-00005-of-00004", "x-00000-of-00004", "x-00001-of-99999"])
def test_numbers_that_no_shard_has(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.gguf").write_bytes(b"")
    with pytest.raises(ModelFileError, match="each is numbered within them"):
        model_files(tmp_path / f"{name}.gguf")


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="a folder without a model"):
        model_files(tmp_path)
    for name in ("b.gguf", "a-00001-of-00002.gguf", "a-00002-of-00002.gguf", "c-00002-of-00002"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "c-00002-of-00002.gguf").write_bytes(b"")
    (tmp_path / "folder.gguf").mkdir()
    assert [it.name for it in models_in(tmp_path)] == ["a-00001-of-00002.gguf", "b.gguf"]
    with pytest.raises(ModelNotFound, match=r"2 models: .* a-00001-of-00002\.gguf, b\.gguf"):
        model_files(tmp_path)
    (tmp_path / "b.gguf").unlink()
    assert first_file(tmp_path).name == "a-00001-of-00002.gguf"
    for name in ("x", "x" * 300):
        with pytest.raises(ModelNotFound, match="there is no file"):
            model_files(tmp_path / f"{name}-00001-of-00002.gguf")
    for path in (tmp_path / "none.gguf", Path("zero\0byte.gguf")):
        assert model_files(path) == (path,)


def test_links_in_a_ring(tmp_path: Path) -> None:
    a, b = tmp_path / "a.gguf", tmp_path / "b.gguf"
    a.symlink_to(b)
    b.symlink_to(a)
    assert model_files(a) == (a,)
