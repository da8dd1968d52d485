"""Files of adopted models as they come, and files that change while libllama maps them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from isthmus.device import Device
from isthmus.errors import ModelFileError
from isthmus.memory import lease
from isthmus.model import open_model
from tests.adopted.conftest import hashes_for
from tests.adopted.test_sessions import PROMPT, SETTINGS, Room, go_on, logits_of, opened
from tests.attacks.test_mapped_files import OVERWRITE, TRUNCATE, attacked, no_memory
from tests.split_gguf import split

Files = Callable[[str], Path]


def copied(path: Path, folder: Path) -> Path:
    return Path(shutil.copy(path, folder / path.name))


def test_a_model_in_shards_has_the_bits_of_the_whole(
    device: Device, tiny_file: Files, tmp_path: Path
) -> None:
    whole = tiny_file("falcon-h1")
    shards = split(whole, tmp_path, count=3)
    for path in (shards[0], shards[2], tmp_path):
        with ExitStack() as stack:
            found = open_model(device, path, SETTINGS, hashes_for(shards[0]))
            model = stack.enter_context(closing(found))
            assert len(model.file.files) == 3
            session = Room(device, stack).open(model)
            model.prefill(session, PROMPT)
            assert [session.logits.tobytes(), *go_on(model, session)] == logits_of(device, whole)


@pytest.mark.parametrize("code", [TRUNCATE, OVERWRITE])
def test_a_model_computes_on_with_what_it_had(
    device: Device, tiny_file: Files, tmp_path: Path, code: str
) -> None:
    path = copied(tiny_file("falcon-h1"), tmp_path)
    expected = logits_of(device, path)
    with opened(device, path) as (model, room):
        session = room.open(model)
        attacked(path, code)
        model.prefill(session, PROMPT)
        assert [session.logits.tobytes(), *go_on(model, session)] == expected


def test_without_memory_for_a_copy_the_model_fails_and_not_the_process(
    device: Device, tiny_file: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copied(tiny_file("falcon-h1"), tmp_path)
    with opened(device, path) as (model, room):
        session = room.open(model)
        model.prefill(session, PROMPT)
        monkeypatch.setattr(lease, "available_nbytes", no_memory)
        attacked(path, TRUNCATE)
        with pytest.raises(ModelFileError, match="was written to while it was in use"):
            model.decode(session, 1)
