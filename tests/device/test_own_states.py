"""States and checkpoints in the device's own memory, beside KV caches: see `test_own.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from isthmus import Limits, Runtime
from isthmus.errors import ContextFull, LimitExceeded
from tests.device.conftest import FakeDriver
from tests.tiny_gguf import TinyModel


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    return TinyModel("qwen35", quantisation="Q8_0", with_tokenizer=True).write(folder / "x.gguf")


@pytest.fixture
def gpu(driver: FakeDriver) -> Iterator[Runtime]:
    with Runtime(device="cuda", sharing="registered") as runtime:
        assert runtime.device.caches is not None
        yield runtime
        assert runtime.device.caches.taken_nbytes == 0, "a test closes its actors"


def test_agents_go_on_as_on_the_processor(gpu: Runtime, path: Path, tmp_path: Path) -> None:
    """Forked, evicted, saved there and restored here, from a checkpoint each."""
    model = gpu.load_model(path)
    with Runtime(device="cpu", threads=2) as cpu:
        here = cpu.load_model(path)
        args = ["n_ctx=256", "ask=0"]
        actor = gpu.spawn("bench", models={"default": model}, args=args, seed=1, clock_ns=0)
        twin = cpu.spawn("bench", models={"default": here}, args=args, seed=1, clock_ns=0)
        for it in (actor, twin):
            it.send("prefill 40 1")
            it.send("sequence 9")
        assert actor.evict() > 0
        saved = actor.snapshot(tmp_path / "a.safetensors")
        (fork,) = actor.fork()
        restored = cpu.restore(saved, models={"default": here})
        agents = (actor, twin, fork, restored)
        for it in agents:
            it.send("truncate 40")
            assert it.sessions[0].n_tokens == 40
            it.send("tokens 7")
        assert len({it.send("sequence 20").text for it in agents}) == 1
        assert len({it.send("branch 3 4").text for it in agents}) == 1
        for it in agents:
            it.close()
        model.close()


def test_what_fails_is_undone(gpu: Runtime, path: Path) -> None:
    model = gpu.load_model(path)
    limits = Limits(on_failure="undo", tokens=160)
    args = ["n_ctx=512", "max_tokens=8", "temperature=0"]
    with (
        gpu.spawn("chat", models={"default": model}, args=args, seed=1, limits=limits) as actor,
        gpu.spawn("chat", models={"default": model}, args=args, seed=1) as untouched,
    ):
        for it in (actor, untouched):
            it.send("One")
        with pytest.raises(LimitExceeded):
            actor.send("x" * 200)
        with pytest.raises(ContextFull):
            untouched.send("x" * 520)
        assert actor.send("Two").text == untouched.send("Two").text
    model.close()
