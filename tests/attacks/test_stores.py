"""Stores that others write, collect, damage and forge at the same time."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from isthmus.errors import IsthmusError, SnapshotError, SnapshotInvalid, SnapshotNotFound
from isthmus.snapshot import (
    Draft,
    MemorySource,
    Snapshot,
    Store,
    collection,
    open_snapshot,
    packs,
)
from isthmus.snapshot.atomic import AtomicFile
from isthmus.snapshot.database import locked
from isthmus.snapshot.index import IndexStale
from isthmus.snapshot.store import resolve, target_of
from tests.crash.test_kill import Memory, killed_after

_HANG_S = 60


def small(memory: Memory, number: int, n_chunks: int = 4) -> Draft:
    """A snapshot of a few chunks, of which one is nobody else's."""
    whole = memory.draft(number)
    chunks = dict(list(whole.memory.chunks.items())[:n_chunks])
    records = set(whole.manifest.__struct_fields__) - {"memory", "parts"}
    return Draft.make(
        MemorySource(whole.memory.base, whole.memory.nbytes, chunks),
        {"guest": ("U8", b"guest")},
        **{name: getattr(whole.manifest, name) for name in records},
    )


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def clock_with(sleep: Callable[[float], None]) -> SimpleNamespace:
    """A `time` for one module: other threads sleep as they always do."""
    return SimpleNamespace(monotonic=time.monotonic, sleep=sleep)


def n_packs(store: Store) -> int:
    return len(list((store.folder / "packs").iterdir()))


# ---------------------------------------------------------------------------------- what is read


def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Notes which packs and snapshots are opened from now on."""
    seen: list[Path] = []

    def noting(real: Callable[..., object]) -> Callable[..., object]:
        def open_one(path: Path, *rest: object) -> object:
            seen.append(path)
            return real(path, *rest)

        return open_one

    for where in ("packs", "collection", "store"):
        module = sys.modules[f"isthmus.snapshot.{where}"]
        for name in ("open_pack", "open_snapshot"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, noting(getattr(module, name)))
    return seen


@pytest.mark.parametrize("anew", [False, True], ids=["running", "another process"])
def test_the_number_of_packs_decides_nothing(
    store: Store, memory: Memory, monkeypatch: pytest.MonkeyPatch, anew: bool
) -> None:
    for number in range(60):
        store.save(small(memory, number), f"agent{number}.0")
    store.gc()
    store = Store(store.folder) if anew else store
    seen = opened(monkeypatch)
    store.save(small(memory, 100), "agent0.1")
    assert seen == []
    store.open("agent0.1").image()
    assert len(seen) <= 3
    store.delete("agent7.0")
    seen.clear()
    assert store.gc(quick=True).n_packs_removed == 1
    assert len(seen) <= 6, "a collection reads what was deleted, and what was saved since the last"


def test_a_saver_never_waits_for_a_whole_collection(
    store: Store, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two packs that are removed the store is free for a moment."""
    monkeypatch.setattr("isthmus.snapshot.collection._STEP_S", 0.0)
    for number in range(10):
        store.save(small(memory, number), f"n{number}")
    store.delete_all([f"n{number}" for number in range(10)])
    saved: list[str] = []

    def between(_: float) -> None:
        saved.append(f"while{len(saved)}")
        Store(store.folder).save(small(memory, 50), saved[-1])

    monkeypatch.setattr(collection, "time", clock_with(between))
    store.gc()
    assert len(saved) >= 10
    for name in saved:
        store.open(name).verify()


# ---------------------------------------------------------------------------------- other processes


_COLLECTS = """
import sys
from isthmus.snapshot import Store
print("ready", flush=True)
while True:
    Store(sys.argv[1]).gc()
"""


def restored_beside_gc(store: Store, memory: Memory, seconds: float) -> int:
    """Saves, replaces, deletes and reads while another process collects; how often it read."""
    keep = [f"keep{n}" for n in range(3)]
    for number, name in enumerate(keep):
        store.save(memory.draft(number), name)
    n_read = 0
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", _COLLECTS, store.folder], stdout=subprocess.PIPE
            )
        )
        stack.callback(other.kill)
        assert other.stdout is not None
        other.stdout.readline()
        end = time.monotonic() + seconds
        number = 10
        while time.monotonic() < end:
            number += 1
            store.save(small(memory, number, 1 + number % 30), f"passing{number % 4}")
            if number % 3 == 0:
                with contextlib.suppress(SnapshotNotFound):
                    store.delete(f"passing{random.randrange(4)}")
            if number % 7 == 0:
                store.save(memory.draft(number), random.choice(keep))
            for name in keep:
                open_snapshot(store.path(name)).verify()
                n_read += 1
            assert other.poll() is None, "the collecting process failed"
    store.gc()
    for name in store.names():
        store.open(name).verify()
    return n_read


def test_reading_beside_gc_in_another_process(store: Store, memory: Memory) -> None:
    assert restored_beside_gc(store, memory, 4.0) > 20


@pytest.mark.long
def test_reading_beside_gc_in_another_process_for_a_minute(store: Store, memory: Memory) -> None:
    assert restored_beside_gc(store, memory, 60.0) > 300


def test_threads_with_indices_of_their_own(store: Store) -> None:
    """As in a server: its store saves while actors are restored by path, beside another process."""
    errors: list[BaseException] = []
    end = time.monotonic() + 3
    stores = [Store(store.folder) for _ in range(3)]

    def live(number: int) -> None:
        memory, turn = Memory(), 0
        try:
            while time.monotonic() < end:
                turn += 1
                stores[number].save(small(memory, 1000 * number + turn), f"n{number}")
                open_snapshot(store.path(f"n{number}")).verify()
        except BaseException as error:
            errors.append(error)

    command = [sys.executable, "-c", _COLLECTS, store.folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        threads = [threading.Thread(target=live, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(_HANG_S)
        assert other.poll() is None, "the collecting process failed"
        other.kill()
    assert errors == []


@pytest.mark.parametrize("when", ["before", "between"])
def test_an_index_that_another_process_makes_anew(
    store: Store, memory: Memory, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Packs whose snapshots are not entered yet stay."""
    for number in range(5):
        store.save(small(memory, number), f"n{number}")
    store.gc(quick=True)
    store.delete("n0")
    other = Store(store.folder)

    def anew(_: float = 0.0) -> None:
        other._index.discard()
        other.save(small(memory, 9), "other")

    if when == "before":
        anew()
    else:
        monkeypatch.setattr("isthmus.snapshot.collection._STEP_S", 0.0)
        monkeypatch.setattr(collection, "time", clock_with(anew))
    store.gc(quick=True)
    monkeypatch.undo()
    assert {"n1", "n2", "n3", "n4"} <= set(store.names())
    for name in store.names():
        store.open(name).verify()


def test_packs_that_vanish_between_listing_and_opening(
    store: Store, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(memory.draft(1), "a")
    snapshot = open_snapshot(store.path("a"))
    listing = packs.pack_names

    def with_ghosts(folder: Path) -> set[str]:
        return listing(folder) | {f"{'0' * 64}.pack.safetensors"}

    monkeypatch.setattr(packs, "pack_names", with_ghosts)
    store._index.discard()
    snapshot.image()
    snapshot.verify()


def test_packs_that_are_moved_while_they_are_listed(
    store: Store, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing may show neither the old pack nor the new one. The store is then held still."""
    store.save(memory.draft(1), "a")
    snapshot = open_snapshot(store.path("a"))
    listing = packs.pack_names
    misses = [True, True]
    monkeypatch.setattr(
        packs, "pack_names", lambda it: set() if misses and misses.pop() else listing(it)
    )
    store._index.discard()
    snapshot.verify()
    assert not misses


def test_a_pack_is_moved_under_an_open_snapshot(store: Store, memory: Memory) -> None:
    store.save(memory.draft(1), "all")
    few = small(memory, 1, 3)
    store.save(few, "few")
    snapshot = store.open("few")
    snapshot.packs()
    store.delete("all")
    assert Store(store.folder).gc().n_packs_rewritten == 1
    snapshot.image()
    snapshot.verify()
    assert snapshot.chunk(next(iter(few.memory.chunks.values())))


# ---------------------------------------------------------------------------------- the index


def spoil(store: Store, how: str) -> None:
    path = store.folder / "index.sqlite"
    store._index.close()
    data = path.read_bytes()
    if how == "zeroed":
        path.write_bytes(bytes(len(data)))
    elif how == "noise":
        path.write_bytes(data[:100] + random.Random(1).randbytes(len(data) - 100))
    elif how == "words":  # a table that cannot be made, of a name that is no UTF-8
        data = data.replace(b"tablechunkchunk", b"table\xbf\xbf\xbf\xbf\xbfchunk")
        path.write_bytes(data.replace(b"CREATE TABLE chunk", b"CREATE TABLE ((((("))
    elif how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "removed":
        path.unlink()
    elif how == "link":
        path.rename(path.with_name("elsewhere"))
        path.symlink_to("elsewhere")
    elif how == "folder":
        path.unlink()
        path.mkdir()
    elif how == "pipe":
        path.unlink()
        os.mkfifo(path)
    else:
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.executescript(how)


LIES = {
    "trigger": "CREATE TRIGGER t AFTER INSERT ON need BEGIN DELETE FROM chunk; END",
    "view": "DROP TABLE need; CREATE VIEW need AS SELECT 1 AS pack, 1 AS snapshot",
    "elsewhere": "UPDATE pack SET name = '../../' || name",
    "no name": "UPDATE pack SET name = CAST(id AS BLOB)",
    "path": "UPDATE snapshot SET name = CAST('../../etc/passwd' AS BLOB)",
    "number": "UPDATE pack SET nbytes = 'many'",
    "text": "UPDATE chunk SET pack = 'text'",
    "no pack": "UPDATE chunk SET pack = 999",
    "no needs": "DELETE FROM need",
    "nothing": "DELETE FROM need; DELETE FROM snapshot; DELETE FROM chunk; DELETE FROM pack",
}
DAMAGES = ["zeroed", "noise", "words", "truncated", "empty", "removed", "link", "folder", "pipe"]


@pytest.mark.parametrize("how", [*DAMAGES, *LIES])
def test_an_index_that_is_damaged_or_lies(store: Store, memory: Memory, how: str) -> None:
    """Nothing of the snapshots is lost, and no file outside is touched."""
    for number in range(5):
        store.save(memory.draft(number), f"n{number}")
    spoil(store, LIES.get(how, how))
    store = Store(store.folder)
    open_snapshot(store.path("n2")).verify()
    store.save(memory.draft(9), "n9")
    store.open("n9").verify()
    if how == "no needs":  # whoever can write that can remove the packs themselves
        return
    store.delete("n0")
    store.gc()
    for name in store.names():
        store.open(name).verify()


CUT_SHORT = """
import os, sys
from pathlib import Path
from isthmus.snapshot import Store
from tests.attacks.test_stores import small
from tests.crash.test_kill import Memory

store, memory, n = Store(sys.argv[1]), Memory(), 0
for turn in range(40):
    store.save(small(memory, turn), f"n{turn % 4}")
    store.open(f"n{turn % 4}").verify()
    if turn % 3 == 0:
        store.gc(quick=turn % 2 == 0)
    for path in store.folder.glob("index.sqlite*"):
        nbytes = path.stat().st_size
        how = turn % 4
        if how == 3 and path.suffix == ".sqlite":  # it says that it has a write-ahead log
            with path.open("r+b") as file:
                file.seek(18)
                file.write(bytes([2, 2]))
                file.seek(24)
                file.write(os.urandom(4))
        elif how < 3 and nbytes:
            os.truncate(path, (0, 4096, nbytes // 2)[how])
            n += 1
print(n)
"""


def test_an_index_that_is_cut_short_while_it_is_open(tmp_path: Path) -> None:
    """In a process of its own, which a signal would end."""
    run = subprocess.run(
        [sys.executable, "-c", CUT_SHORT, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=_HANG_S,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert int(run.stdout) > 10


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_of_an_index_is_mapped(store: Store, memory: Memory) -> None:
    store.save(small(memory, 1), "n1")
    assert "index.sqlite" not in Path("/proc/self/maps").read_text()
    assert store.gc() == Store(store.folder).gc()


@pytest.mark.parametrize("used_between", [False, True])
def test_a_folder_that_is_made_again(store: Store, memory: Memory, used_between: bool) -> None:
    """Its files get the numbers of those that were removed; a process has used them."""
    for turn in range(10):
        store.save(small(memory, turn), f"n{turn}")
        shutil.rmtree(store.folder)
        if used_between:
            with pytest.raises(SnapshotError):
                store.save(small(memory, turn), "nowhere")
        again = Store(store.folder)
        again.save(small(memory, turn), "other")
        store.save(small(memory, turn + 1), "this")
        again.delete("other")
        store.gc(quick=True)
        again.gc(quick=True)
        database = again._index._access._database
        assert database is not None
        assert database.in_file
        assert again._index.needed_by(store.id_of("this"))
        store.open("this").verify()


@pytest.mark.parametrize("how", ["link", "pipe", "folder", "noise"])
def test_a_journal_that_is_none(store: Store, memory: Memory, tmp_path: Path, how: str) -> None:
    """It is not waited for, and what a link leads to stays as it is."""
    store.save(small(memory, 1), "n1")
    journal = store.folder / "index.sqlite-journal"
    journal.unlink(missing_ok=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"x" * 100)
    {
        "link": lambda: journal.symlink_to(elsewhere),
        "pipe": lambda: os.mkfifo(journal),
        "folder": journal.mkdir,
        "noise": lambda: journal.write_bytes(random.Random(1).randbytes(5000)),
    }[how]()
    for it in (store, Store(store.folder)):
        it.save(small(memory, 2), "n2")
        it.delete("n2")
        it.gc()
        it.open("n1").verify()
    assert elsewhere.read_bytes() == b"x" * 100


def test_an_index_that_another_process_keeps(
    store: Store, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(small(memory, 1), "n1")
    monkeypatch.setattr("isthmus.snapshot.database._BUSY_S", 0.05)
    with (
        locked(store.folder / "index.sqlite"),
        pytest.raises(SnapshotError, match="another process has kept"),
    ):
        Store(store.folder).save(small(memory, 2), "n2")
    store.save(small(memory, 2), "n2")


def test_a_part_of_what_is_written_together_is_taken_back(store: Store, memory: Memory) -> None:
    """And neither what came before it nor what comes after."""
    store.save(small(memory, 1), "n1")
    index = store._index
    with index.together():
        first = index.begin(b"first.safetensors", "1" * 64, [1])
        with pytest.raises(IndexStale):
            index.begin(b"second.safetensors", "2" * 64, [1, 999])
        index.begin(b"third.safetensors", "3" * 64, [1])
    names = {it.name for it in index.snapshots()}
    assert {b"first.safetensors", b"third.safetensors"} < names
    assert b"second.safetensors" not in names

    def fail() -> None:
        with index.together():
            index.drop(first)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert first in {it.id for it in index.snapshots()}


def test_a_store_that_cannot_be_written(store: Store, memory: Memory) -> None:
    store.save(memory.draft(1), "a")
    store._index.discard()
    for folder in (store.folder, store.folder / "packs", store.folder / "snapshots"):
        folder.chmod(0o500)
    try:
        open_snapshot(store.path("a")).verify()
    finally:
        for folder in (store.folder, store.folder / "packs", store.folder / "snapshots"):
            folder.chmod(0o700)


def test_a_writer_that_knows_no_index_loses_nothing(store: Store, memory: Memory) -> None:
    """Snapshots that were copied here, or written by an older release, keep their packs."""
    other = Store(store.folder.parent / "other")
    for number in range(3):
        store.save(memory.draft(number), f"n{number}")
        other.save(memory.draft(number + 10), f"n{number}")
    for folder in ("packs", "snapshots"):
        for path in (other.folder / folder).iterdir():
            path.replace(store.folder / folder / path.name)
    store.gc()
    for number in range(3):
        assert store.open(f"n{number}").manifest.created_ns == number + 10
        store.open(f"n{number}").verify()
    odd = store.folder / "snapshots" / os.fsdecode(b"\xff\xfe.safetensors")
    store.path("n1").rename(odd)
    store.gc()
    open_snapshot(odd).verify()
    assert store.names() == ["n0", "n2"]


def test_a_chunk_that_comes_back_is_kept_for_those_who_lacked_it(
    store: Store, memory: Memory
) -> None:
    store.save(memory.draft(1), "a")
    (pack,) = (store.folder / "packs").iterdir()
    data = pack.read_bytes()
    pack.unlink()
    store.gc()
    with pytest.raises(SnapshotInvalid, match="has no chunk"):
        store.open("a").image()
    store.add_pack(pack.name, data)
    store.gc()
    store.open("a").verify()


def test_killed_savers_leave_nothing_for_good(store: Store, memory: Memory) -> None:
    number = [0]

    def work() -> None:
        number[0] += 1
        store.save(small(memory, number[0]), f"n{number[0] % 3}")
        if number[0] % 5 == 0:
            store.delete(f"n{number[0] % 3}")

    for _ in range(10):
        killed_after(random.uniform(0.01, 0.1), work)
    store.gc()
    used = {it for name in store.names() for it in store.open(name).chunks.values()}
    assert n_packs(store) <= max(1, 2 * len(used))
    for name in store.names():
        store.open(name).verify()
    store.delete_all(store.names())
    store.gc()
    assert n_packs(store) == 0


# ---------------------------------------------------------------------------------- typed errors


def folder_as_snapshot(store: Store) -> None:
    store.path("a").unlink()
    store.path("a").mkdir()


def pipe_as_snapshot(store: Store) -> None:
    store.path("a").unlink()
    os.mkfifo(store.path("a"))


def sparse_snapshot(store: Store) -> None:
    os.truncate(store.path("a"), 1 << 40)


def brackets_as_snapshot(store: Store) -> None:
    text = b"[" * (32 << 20)
    store.path("a").write_bytes(len(text).to_bytes(8, "little") + text)


def nested_metadata(store: Store) -> None:
    text = b'{"__metadata__":' + b'{"a":' * 1_000_000
    store.path("a").write_bytes(len(text).to_bytes(8, "little") + text)


def sparse_pack(store: Store) -> None:
    for path in (store.folder / "packs").iterdir():
        os.truncate(path, 1 << 40)


def packs_as_file(store: Store) -> None:
    for path in (store.folder / "packs").iterdir():
        path.unlink()
    (store.folder / "packs").rmdir()
    (store.folder / "packs").write_text("no folder")


HOSTILE: list[Callable[[Store], None]] = [
    folder_as_snapshot,
    pipe_as_snapshot,
    sparse_snapshot,
    brackets_as_snapshot,
    nested_metadata,
    sparse_pack,
    packs_as_file,
]


@pytest.mark.parametrize("damage", HOSTILE, ids=lambda it: it.__name__)
def test_what_is_found_instead_of_a_file(
    store: Store, memory: Memory, damage: Callable[[Store], None]
) -> None:
    store.save(memory.draft(1), "a")
    damage(store)
    with pytest.raises(SnapshotError):
        open_snapshot(store.path("a")).verify()
    with pytest.raises(SnapshotError):
        Store(store.folder).open("a").verify()
    for use in (store.gc, store.names, lambda: store.save(memory.draft(2), "b")):
        with contextlib.suppress(SnapshotError):
            use()


@pytest.mark.parametrize("number", [5, 28, 12, 122])
def test_errors_of_the_system_are_typed(
    store: Store, memory: Memory, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """EIO, ENOSPC, ENOMEM, EDQUOT, wherever the system is asked."""
    store.save(memory.draft(1), "a")
    snapshot: Snapshot = store.open("a")

    def fails(*_: object, **__: object) -> object:
        raise OSError(number, os.strerror(number))

    def path() -> Path:
        return store.path("a")

    uses: list[Callable[[], object]] = [
        lambda: store.save(memory.draft(3), "b"),
        lambda: store.open("a").verify(),
        lambda: open_snapshot(path()).verify(),
        snapshot.verify,
        lambda: Store(store.folder).names(),
        lambda: store.delete("a"),
        store.gc,
        lambda: AtomicFile(path()).__enter__().commit(0),
    ]
    names = ("open", "pread", "pwrite", "fsync", "listdir", "scandir", "unlink", "replace", "fstat")
    for name in (*names, "lstat", "ftruncate", "lseek"):
        for use in uses:
            with monkeypatch.context() as patch:
                patch.setattr(os, name, fails)
                with contextlib.suppress(IsthmusError):
                    use()


@pytest.mark.parametrize(
    "name", ["a\0b", "~nobody-of-this-name/x", "x" * 5000, os.fsdecode(b"\xff\xfe"), "a/\ud800"]
)
def test_names_that_no_system_has(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uses: list[Callable[[], object]] = [
        lambda: Store(name),
        lambda: Store(name, create=False),
        lambda: resolve(name),
        lambda: target_of(name),
        lambda: open_snapshot(Path(name)),
        lambda: AtomicFile(Path(name)).__exit__(),
    ]
    for use in uses:
        with contextlib.suppress(SnapshotError):
            use()


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(SnapshotError, match="Permission denied"):
        Store(tmp_path)
