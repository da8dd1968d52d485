"""What a file that is written may replace: nothing but one of its own kind."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from isthmus.cli.restoring import target
from isthmus.config import Environment
from isthmus.download import SMOLLM2, pull
from isthmus.errors import DownloadError, SettingsError, SnapshotError
from isthmus.runtime import Runtime
from isthmus.server.keys.keys import new_key, remove_key
from isthmus.snapshot import Store, save_file
from isthmus.snapshot.atomic import AtomicFile
from tests.crash.test_kill import Memory


def make_socket(path: Path) -> None:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as it:
        it.bind(os.path.relpath(path))  # an absolute name may be too long for a socket


def make_device(path: Path) -> None:
    try:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")


def make_safetensors(path: Path) -> None:
    text = b'{"__metadata__":{"format":"pt"}}'
    path.write_bytes(len(text).to_bytes(8, "little") + text)


SPECIAL: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a socket": make_socket,
    "a device": make_device,
    "a symbolic link": lambda path: path.symlink_to(path.parent / "elsewhere"),
}
FOREIGN: dict[str, Callable[[Path], object]] = {
    "notes": lambda path: path.write_text("Buy milk.\n"),
    "one byte": lambda path: path.write_bytes(b"{"),
    "JSON": lambda path: path.write_text('{"__metadata__":{"format":"isthmus-snapshot"}}'),
    "weights": make_safetensors,
    "a pack": lambda path: path.write_bytes(_a_pack(path)),
}


def _a_pack(path: Path) -> bytes:
    store = Store(path.parent / "another")
    store.save(Memory().draft(1), "it")
    return next((store.folder / "packs").iterdir()).read_bytes()


def state_of(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything in a folder: what it is, and what is in it."""
    found = {}
    for path in folder.iterdir():
        it = path.lstat()
        data = path.read_bytes() if stat.S_ISREG(it.st_mode) else b""
        found[path.name] = (it.st_mode, it.st_ino, data)
    return found


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_file_is_not_replaced(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, null_runtime: Runtime
) -> None:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "place"
    SPECIAL[kind](place)
    before = state_of(tmp_path)
    actor = null_runtime.spawn("bench")
    draft = Memory().draft(1)
    writes: list[Callable[[], object]] = [
        lambda: AtomicFile(place),
        lambda: save_file(draft, place),
    ]
    if kind != "a folder":  # which becomes a store
        writes += [lambda: actor.snapshot(place), lambda: target(str(place))]
    for write in writes:
        with pytest.raises(SnapshotError, match=f"place is {kind}"):
            write()
        assert state_of(tmp_path) == before
    actor.close()


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_snapshot_is_not_replaced_by_one(
    kind: str, tmp_path: Path, null_runtime: Runtime
) -> None:
    (tmp_path / "here").mkdir()
    place = tmp_path / "here" / "place"
    FOREIGN[kind](place)
    store = Store(tmp_path / "store")
    inside = store.path("it")
    inside.write_bytes(place.read_bytes())
    if kind == "a pack":
        (tmp_path / "here" / "another").rename(tmp_path / "another")
    before, before_inside = state_of(tmp_path / "here"), state_of(inside.parent)
    actor = null_runtime.spawn("bench")
    writes: list[Callable[[], object]] = [
        lambda: save_file(Memory().draft(1), place),
        lambda: actor.snapshot(place),
        lambda: target(str(place)),
        lambda: actor.snapshot(store, name="it"),
        lambda: target(str(store.folder / "it")),
    ]
    for write in writes:
        with pytest.raises(SnapshotError, match="exists and is no snapshot"):
            write()
        assert state_of(tmp_path / "here") == before
        assert state_of(inside.parent) == before_inside
    actor.close()


@pytest.mark.parametrize("kind", ["nothing", "an empty file", "a snapshot", "a damaged one"])
def test_what_may_be_replaced(kind: str, tmp_path: Path, null_runtime: Runtime) -> None:
    place = tmp_path / "place"
    if kind == "an empty file":
        place.touch()
    elif kind != "nothing":
        save_file(Memory().draft(1), place)
        if kind == "a damaged one":
            os.truncate(place, 5000)
    actor = null_runtime.spawn("bench")
    assert target(str(place)) == (place, None)
    actor.snapshot(place)
    null_runtime.restore(place).close()
    actor.close()


def test_what_takes_the_place_while_it_is_written_stays(tmp_path: Path) -> None:
    place = tmp_path / "place"
    with AtomicFile(place) as file:
        file.write(b"new", 0)
        os.mkfifo(place)
        with pytest.raises(SnapshotError, match="is a pipe"):
            file.commit(3)
    assert stat.S_ISFIFO(place.lstat().st_mode)
    assert os.listdir(tmp_path) == ["place"]


@pytest.mark.parametrize("kind", ["a folder", "a pipe", "a device"])
def test_keys_are_not_put_where_nothing_is_kept(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    SPECIAL[kind](place)
    for write in (lambda: new_key(place, "ada"), lambda: remove_key(place, "ada")):
        with pytest.raises(SettingsError, match="no plain file"):
            write()


@pytest.mark.parametrize("kind", ["a folder", "a pipe"])
def test_a_model_is_not_fetched_over_what_is_no_file(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "models" / SMOLLM2.file_name
    place.parent.mkdir()
    SPECIAL[kind](place)
    with pytest.raises(DownloadError, match="exists and is no file"):
        pull("smollm2", Environment(cache=tmp_path), print)
    assert not place.is_file()
