"""What files, settings, errors and exits may do to adopted sessions, and to the process."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from isthmus.device import Device
from isthmus.errors import DeviceFailed, SettingsError
from isthmus.model.adopted import context as adopted_context
from isthmus.model.adopted import executor
from isthmus.model.adopted.context import Context
from isthmus.model.adopted.parted import computed_in_jobs
from isthmus.model.adopted.shape import MAX_N_CTX
from isthmus.model.jobs import Jobs
from isthmus.units import GuestPtr
from tests.adopted.test_sessions import (
    EACH,
    NEXT,
    PROMPT,
    SETTINGS,
    Files,
    go_on,
    logits_of,
    opened,
)


def test_a_token_that_fails_is_taken_back_if_the_state_was_kept(
    device: Device, tiny_file: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the first one, by which the session has become no longer."""

    def failing(*_: object) -> None:
        ctypes.memset(session.base + session.layout.kv_offset, 7, session.layout.kv_nbytes // 2)
        raise DeviceFailed("out of order")

    with opened(device, tiny_file("mamba")) as (model, room):
        session = room.open(model)
        model.prefill(session, PROMPT)
        with session.restorable(), monkeypatch.context() as patch:
            patch.setattr(Context, "append_one", failing)
            with pytest.raises(DeviceFailed, match="out of order"):
                model.decode(session, 1)
            session.truncate(len(PROMPT))
        assert go_on(model, session) == logits_of(device, tiny_file("mamba"))[1:]


def test_a_copy_of_a_spoilt_state_is_spoilt(device: Device, tiny_file: Files) -> None:
    """One of no tokens is not, and has the states of a new session."""
    with opened(device, tiny_file("mamba")) as (model, room):
        source, copy = room.open(model), room.open(model)
        model.prefill(source, PROMPT)
        source.lose()
        copy.copy_from(source, len(PROMPT))
        with pytest.raises(DeviceFailed, match="truncate it to 0"):
            copy.require_whole()
        copy.copy_from(source, 0)
        assert not any(ctypes.string_at(*place).strip(b"\0") for place in copy._states())
        model.prefill(copy, PROMPT)
        assert go_on(model, copy) == logits_of(device, tiny_file("mamba"))[1:]


def test_a_chunk_is_as_long_as_settings_say(device: Device, tiny_file: Files) -> None:
    """Longer than what libllama takes by default; nobody asks for logits after any token of it."""
    settings = replace(SETTINGS, prefill_chunk=4096)
    with opened(device, tiny_file("mamba"), settings) as (model, room):
        layout = model.contexts.layout(4096)
        base = room.region.address(GuestPtr(4096), layout.nbytes)
        context = model.contexts.open(base, layout)
        with closing(context):
            context.append(np.ones(4096, dtype=np.int32), with_logits=False)
            assert context.n_tokens == 4096


def test_no_context_is_tried_that_takes_the_memory_of_the_process(
    device: Device, tiny_file: Files, tmp_path: Path
) -> None:
    """A file may say that its model has a context of millions of tokens."""
    raw = bytearray(tiny_file("gemma3n").read_bytes())
    key = b"gemma3n.context_length"
    at = raw.index(key) + len(key) + 4
    raw[at : at + 4] = (16 * MAX_N_CTX).to_bytes(4, "little")
    path = tmp_path / "long.gguf"
    path.write_bytes(raw)
    with opened(device, path) as (model, _):
        assert model.hparams.n_ctx_train == MAX_N_CTX
        with pytest.raises(SettingsError, match=f"takes 1 to {MAX_N_CTX}"):
            model.layout(MAX_N_CTX + 1)


_LEAVING = """
import sys
from pathlib import Path
from isthmus.config import DeviceSettings, ModelSettings
from isthmus.device import open_device
from isthmus.file_hash import FileHashes
from isthmus.memory import Region
from isthmus.model import jobs, open_model
from isthmus.native.loader import open_library

jobs.JOB_S = 0.0
device = open_device("cpu", open_library(), DeviceSettings(threads=1))
path = Path(sys.argv[1])
settings = ModelSettings(graph="adopted")
model = open_model(device, path, settings, FileHashes(path.parent / "hashes"))
region = Region.reserve(1 << 30, nbytes=1 << 24)
session = model.open_session(region, device.bind(region), 4096, model.layout(256))
under_way = model.executor.append(model.executor.chunks(session, [3] * 100))
device.compute_thread.run(lambda: next(under_way))
print("leaves")
"""


def test_a_process_ends_though_a_pass_is_under_way(tiny_file: Files) -> None:
    path = tiny_file("gemma3n")
    command = [sys.executable, "-c", _LEAVING, str(path)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (found.returncode, found.stdout) == (0, "leaves\n"), found.stderr
    assert "Traceback" not in found.stderr


@EACH
def test_positions_of_many_tokens_are_learned_in_jobs(
    name: str, device: Device, tiny_file: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others decode between them, in the same scratch."""
    for module in (adopted_context, executor):
        monkeypatch.setattr(module, "MAX_AT_ONCE", 16)
    with opened(device, tiny_file(name)) as (model, room):
        session, other = room.open(model), room.open(model)
        for it in (session, other):
            model.prefill(it, PROMPT)
        copy = room.resume(model, session)
        expected = go_on(model, other)
        other.truncate(0)
        model.prefill(other, PROMPT)
        (chunk,) = model.executor.chunks(copy, NEXT[:1])
        jobs = device.compute_thread.run(lambda: model.executor.append([chunk]))
        others: list[bytes] = []
        ends = object()
        while device.compute_thread.run(lambda: next(jobs, ends)) is not ends:
            others += go_on(model, other, NEXT[len(others) : len(others) + 1])
        assert others == expected
        assert [copy.logits.tobytes(), *go_on(model, copy, NEXT[1:])] == expected


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_call_that_raises_keeps_the_devices_thread_waiting_for_nothing(device: Device) -> None:
    statuses: list[int] = []

    def call() -> int:
        raise MemoryError

    def compute() -> None:
        statuses.append((yield from computed_in_jobs(device, Untaken(), [], Jobs(), 8, call)))

    thread = threading.Thread(target=lambda: list(compute()), daemon=True)
    thread.start()
    thread.join(60)
    assert len(statuses) == 1
    assert statuses[0] != 0


class Untaken:
    """In place of a `Placing`: no backend is taken over."""

    @contextmanager
    def taking_over(self, _backends: object, compute: object) -> Iterator[object]:
        yield compute
