"""Models' files as they come: split, with odd names, replaced or cut while agents use them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from isthmus import Actor, Model, Runtime
from isthmus.errors import IsthmusError, ModelFileError, SnapshotError, SnapshotMismatch
from isthmus.memory import lease
from isthmus.memory.lease import State
from tests.split_gguf import split

ARGS = ["n_ctx=256"]


@pytest.fixture
def shared() -> Iterator[Runtime]:
    with Runtime(device="cpu", threads=1) as runtime:
        yield runtime


def spawned(runtime: Runtime, model: Model) -> Actor:
    actor = runtime.spawn("bench", models={"default": model}, args=ARGS, seed=1)
    actor.send("prefill 20 3")
    return actor


def test_an_agent_of_a_split_model(shared: Runtime, tiny: Path, tmp_path: Path) -> None:
    """Its snapshot is of these shards: with the whole file its tokens are computed again."""
    shards = split(tiny, tmp_path)
    model, whole = shared.load_model(shards[1]), shared.load_model(str(tiny))
    actor = spawned(shared, model)
    actor.snapshot(tmp_path / "agent.safetensors")
    answer = actor.send("sequence 4").text
    assert answer == spawned(shared, whole).send("sequence 4").text
    for given, level in ((shared.load_model(tmp_path), "exact"), (whole, "replayed")):
        again = shared.restore(
            tmp_path / "agent.safetensors", models={"default": given}, require=level
        )
        assert again.restored is not None
        assert again.restored.level == level
        assert again.send("sequence 4").text == answer
    with pytest.raises(SnapshotMismatch, match="weights"):
        shared.restore(tmp_path / "agent.safetensors", models={"default": whole})


def test_an_agent_of_a_model_whose_name_is_no_text(
    shared: Runtime, tiny: Path, tmp_path: Path
) -> None:
    path = tmp_path / os.fsdecode(b"\xff = a: b.gguf")
    try:
        shutil.copyfile(tiny, path)
    except OSError:
        pytest.skip("file names are UTF-8 here")
    model = shared.load_model(path)
    actor = spawned(shared, model)
    actor.snapshot(tmp_path / "agent.safetensors")
    again = shared.restore(tmp_path / "agent.safetensors", models={"default": model})
    assert again.send("sequence 4").text == actor.send("sequence 4").text


def test_a_shard_that_is_replaced_while_agents_use_it(
    shared: Runtime, tiny: Path, tmp_path: Path
) -> None:
    shards = split(tiny, tmp_path)
    model = shared.load_model(shards[0])
    actor, same = spawned(shared, model), spawned(shared, model)
    (tmp_path / "new").write_bytes(b"another")
    (tmp_path / "new").replace(shards[2])
    assert actor.send("sequence 4").text == same.send("sequence 4").text
    with pytest.raises(SnapshotError, match=r"00003-of-00004\.gguf was replaced"):
        actor.snapshot(tmp_path / "agent.safetensors")
    with pytest.raises(ModelFileError, match="not a usable GGUF file"):
        shared.load_model(shards[0])


@pytest.mark.skipif(sys.platform != "linux", reason="leases are Linux's")
def test_a_shard_that_is_lost_ends_what_uses_it(
    shared: Runtime, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an error, and not the process; other models go on."""
    shards = split(tiny, tmp_path)
    model, other = shared.load_model(shards[0]), shared.load_model(tiny)
    if model.weights._mappings[0]._file.state is not State.LEASED:
        pytest.skip("this file system, or this user, has no leases")
    actor, unharmed = spawned(shared, model), spawned(shared, other)
    monkeypatch.setattr(lease, "available_nbytes", lambda: 0)
    code = "import os, sys; os.truncate(sys.argv[1], 64)"
    subprocess.run([sys.executable, "-c", code, str(shards[1])], check=True, timeout=60)
    for _ in range(2):
        with pytest.raises(IsthmusError, match=r"00002-of-00004\.gguf was written to while"):
            actor.send("sequence 4")
    assert unharmed.send("sequence 4").text
