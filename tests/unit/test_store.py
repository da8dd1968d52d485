from __future__ import annotations

import os
from pathlib import Path

import pytest

from isthmus.errors import (
    SettingsError,
    SnapshotError,
    SnapshotInvalid,
    SnapshotNotFound,
)
from isthmus.memory import Region
from isthmus.snapshot import CHUNK_NBYTES, Snapshot, Store, open_snapshot, save_file
from isthmus.snapshot.atomic import AtomicFile, sweep
from isthmus.snapshot.chunk import decode_chunks, encode_chunks, runs
from tests.crash.test_kill import N_CHUNKS, Memory


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def packs(store: Store) -> list[Path]:
    return sorted((store.folder / "packs").iterdir())


def contents(snapshot: Snapshot) -> dict[int, bytes]:
    return dict(snapshot.read_chunks())


def test_a_file_and_a_store_hold_the_same(store: Store, tmp_path: Path) -> None:
    memory = Memory()
    draft = memory.draft(1)
    saved = save_file(draft, tmp_path / "a.safetensors")
    stored = store.save(draft, "a")
    assert saved.id == stored.id == draft.id
    file, recipe = open_snapshot(saved.path), open_snapshot(stored.path)
    file.verify()
    recipe.verify()
    assert file.self_contained
    assert not recipe.self_contained
    assert contents(file) == contents(recipe)
    assert len(contents(file)) == N_CHUNKS // 2
    assert saved.n_chunks_written == saved.n_chunks == N_CHUNKS // 2


def test_a_file_is_sparse(tmp_path: Path) -> None:
    memory = Memory()
    saved = save_file(memory.draft(1), tmp_path / "a.safetensors")
    found = saved.path.stat()
    assert found.st_size > N_CHUNKS * CHUNK_NBYTES
    assert found.st_blocks * 512 < (N_CHUNKS // 2 + 8) * CHUNK_NBYTES


def test_only_what_is_new_is_written(store: Store) -> None:
    memory = Memory()
    first = store.save(memory.draft(1), "first")
    again = store.save(memory.draft(1), "again")
    second = store.save(memory.draft(2), "second")
    assert again.n_chunks_written == 0
    assert first.n_chunks_written == len(set(open_snapshot(first.path).chunks.values()))
    assert second.n_chunks_written == N_CHUNKS // 6 + 1
    assert len(packs(store)) == 2
    assert store.names() == ["again", "first", "second"]


def test_gc_keeps_what_is_used_and_nothing_else(store: Store) -> None:
    memory = Memory()
    for number in range(6):
        store.save(memory.draft(number), f"n{number}")
    expected = contents(store.open("n5"))
    for number in range(5):
        store.delete(f"n{number}")
    done = store.gc()
    assert done.n_packs_removed == 4
    assert done.nbytes_freed > 4 * CHUNK_NBYTES
    assert contents(store.open("n5")) == expected
    store.open("n5").verify()
    assert store.gc().nbytes_freed == 0


def test_gc_writes_a_pack_anew_of_which_little_is_used(store: Store) -> None:
    memory = Memory()
    base = memory.draft(1)
    store.save(base, "all")
    few = dict(list(base.memory.chunks.items())[:3])
    small = type(base.memory)(base.memory.base, base.memory.nbytes, few)
    changed = type(base).make(small, {"guest": ("U8", b"guest")}, **records_of(base))
    store.save(changed, "few")
    store.delete("all")
    image = store.open("few").image()
    done = store.gc()
    assert (done.n_packs_removed, done.n_packs_rewritten) == (0, 1)
    assert len(contents(store.open("few"))) == 3
    store.open("few").verify()
    region = Region.reserve(N_CHUNKS * CHUNK_NBYTES, nbytes=N_CHUNKS * CHUNK_NBYTES)
    region.load(image)  # what an actor lives on stays readable
    store.open("few").verify_memory(region.base)
    region.close()


def records_of(draft: object) -> dict[str, object]:
    manifest = draft.manifest  # type: ignore[attr-defined]
    names = set(manifest.__struct_fields__) - {"memory", "parts"}
    return {name: getattr(manifest, name) for name in names}


def test_gc_refuses_where_a_snapshot_cannot_be_read(store: Store) -> None:
    memory = Memory()
    store.save(memory.draft(1), "a")
    (store.folder / "snapshots" / "b.safetensors").write_bytes(b"damaged")
    store.delete("a")
    with pytest.raises(SnapshotInvalid, match=r"b\.safetensors"):
        store.gc()
    assert len(packs(store)) == 1


def test_names_stay_inside(store: Store) -> None:
    memory = Memory()
    draft = memory.draft(1)
    for name in ("../x", "/etc/passwd", "", ".hidden", "a/b", "a\\b", "x" * 200, "a\n"):
        with pytest.raises(SettingsError, match="no name for a snapshot"):
            store.save(draft, name)
        with pytest.raises(SettingsError):
            store.open(name)
    assert store.names() == []
    with pytest.raises(SnapshotNotFound):
        store.delete("nobody")
    with pytest.raises(SnapshotNotFound):
        store.name_of(Path("/tmp/x.safetensors"))


def test_a_missing_or_damaged_pack_is_noticed(store: Store) -> None:
    memory = Memory()
    store.save(memory.draft(1), "a")
    path = packs(store)[0]
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(SnapshotInvalid, match="not a pack, or is truncated"):
        store.open("a").image()
    path.write_bytes(data[:40_000] + bytes([data[40_000] ^ 1]) + data[40_001:])
    with pytest.raises(SnapshotInvalid, match="damaged"):
        store.open("a").verify()
    path.unlink()
    with pytest.raises(SnapshotInvalid, match="has no chunk"):
        store.open("a").image()


def test_a_folder_that_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(SnapshotNotFound, match="not a store"):
        Store(tmp_path, create=False)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(SnapshotError, match="symbolic link"):
        Store(tmp_path / "link")


# ---------------------------------------------------------------------------------- atomic files


def test_nothing_appears_before_commit(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with AtomicFile(path) as file:
        file.write(b"new", 0)
        assert path.read_text() == "old"
        file.commit(3)
        assert path.read_text() == "new"
    with AtomicFile(path) as file:
        file.write(b"newer", 0)
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_leftovers_are_swept_and_living_writers_are_not(tmp_path: Path) -> None:
    dead = tmp_path / ".isthmus-1-abc.partial"
    dead.write_bytes(b"x")
    with AtomicFile(tmp_path / "a") as file:
        assert not dead.exists()
        sweep(tmp_path)
        file.commit(1)
    assert os.listdir(tmp_path) == ["a"]


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    memory = Memory()
    draft = memory.draft(1)
    with pytest.raises(SnapshotError, match="No such file"):
        save_file(draft, tmp_path / "nowhere" / "a.safetensors")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SnapshotError, match="symbolic link"):
        save_file(draft, tmp_path / "link")
    full = Path("/dev/full")
    if full.exists():
        with pytest.raises(SnapshotError):
            save_file(draft, full / "a")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SnapshotError, match="is a folder"):
        save_file(draft, tmp_path / "folder")
    assert sorted(os.listdir(tmp_path)) == ["folder", "link"]


# ---------------------------------------------------------------------------------- chunks


def test_chunk_tables() -> None:
    chunks = {0: b"a" * 32, 7: b"\0" * 32, 8: b"c" * 32}
    numbers, digests = encode_chunks(chunks)
    assert decode_chunks(numbers, digests, 9 * CHUNK_NBYTES) == chunks
    assert list(runs(chunks)) == [
        (0, CHUNK_NBYTES),
        (7 * CHUNK_NBYTES, 2 * CHUNK_NBYTES),
    ]
    for bad_numbers, bad_digests, nbytes in (
        (numbers, digests, 8 * CHUNK_NBYTES),
        (numbers, digests[:-1], 9 * CHUNK_NBYTES),
        (numbers[4:] + numbers[:4], digests, 9 * CHUNK_NBYTES),
        (numbers[:4] * 3, digests, 9 * CHUNK_NBYTES),
    ):
        with pytest.raises(SnapshotInvalid):
            decode_chunks(bad_numbers, bad_digests, nbytes)
