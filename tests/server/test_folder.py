"""One server at a time for a local folder of agents."""

from __future__ import annotations

from pathlib import Path

import pytest

from isthmus.errors import SettingsError, StorageError
from isthmus.server.storage.folder import Folder
from isthmus.server.storage.record import Record


def record() -> Record:
    return Record(
        id="a" * 12, name="", guest="chat", models={}, args={}, limits={}, seed=1, created=1.0
    )


def test_another_name_of_the_same_folder_is_the_same_folder(tmp_path: Path) -> None:
    first = Folder(tmp_path / "data")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    with pytest.raises(SettingsError, match="another server uses"):
        Folder(tmp_path / "link")
    first.close()
    Folder(tmp_path / "link").close()


def test_a_server_whose_lock_was_removed_writes_no_record(tmp_path: Path) -> None:
    """Somebody removes what looks stale, and a second server starts."""
    first = Folder(tmp_path)
    first.commit(record(), [])
    (tmp_path / "lock").unlink()
    second = Folder(tmp_path)
    with pytest.raises(StorageError, match="was removed or replaced"):
        first.commit(record(), [])
    with pytest.raises(StorageError, match="was removed or replaced"):
        first.remove(record())
    second.commit(record(), [])
    assert [it.id for it in second.records()] == ["a" * 12]
    for it in (first, second):
        it.close()


@pytest.mark.parametrize("kind", ["a folder", "a link"])
def test_a_lock_that_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    if kind == "a folder":
        (tmp_path / "lock").mkdir()
    else:
        (tmp_path / "elsewhere").touch()
        (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SettingsError, match="cannot open"):
        Folder(tmp_path)
