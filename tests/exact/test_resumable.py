"""Guests that wasm-opt makes resumable: they answer as before, and as before from every pause."""

from __future__ import annotations

from pathlib import Path

import pytest

from isthmus import Actor, Runtime
from isthmus.errors import ToolchainMissing
from isthmus.projects.building import make_resumable
from isthmus.projects.toolchain import Toolchain, find_wasm_opt
from isthmus.wasm.resumable import is_resumable
from tests.exact.pausing import at_every_pause
from tests.tiny_gguf import TinyLlama

GUESTS = Path("src/isthmus/guests")


@pytest.fixture(scope="module")
def wasm_opt() -> Toolchain:
    try:
        return find_wasm_opt(Path())
    except ToolchainMissing as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("speculate", ["answer=report", "max_tokens=30", "n_ctx=512"], "A narrow strip of land."),
        ("summarise", ["n_ctx=512", "max_tokens=12"], "A narrow strip of land between two seas."),
        ("bench", ["n_ctx=256"], "sequence 8"),
        ("bench64", ["n_ctx=256"], "sequence 8"),
    ],
)
def test_a_guest_made_resumable_answers_the_same_from_every_pause(
    tmp_path: Path, wasm_opt: Toolchain, name: str, options: list[str], message: str
) -> None:
    plain = (GUESTS / name.removesuffix("64") / f"{name}.wasm").read_bytes()
    changed = make_resumable(plain, wasm_opt, name)
    assert not is_resumable(plain)
    assert is_resumable(changed)
    assert len(changed) <= 1.1 * len(plain)
    target = TinyLlama(quantisation="Q8_0", with_tokenizer=True)
    draft = TinyLlama(n_layer=1, quantisation="Q8_0", with_tokenizer=True)
    with Runtime(device="cpu", threads=1) as runtime:
        models = {"default": runtime.load_model(target.write(tmp_path / "target.gguf"))}
        if name == "speculate":
            models["draft"] = runtime.load_model(draft.write(tmp_path / "draft.gguf"))

        def spawn(wasm: bytes) -> Actor:
            actor = runtime.spawn(wasm, models=models, args=options, seed=3, clock_ns=0)
            if name.startswith("bench"):
                actor.send("prefill 20 1")
            return actor

        expected = spawn(plain).send(message).data
        actor = spawn(changed)
        forks: list[Actor] = []

        def fork(_: int) -> None:
            forks.extend(actor._keeper.while_paused(lambda: actor._children(1, None)))

        _, reply = at_every_pause(runtime, actor, message, fork)
        assert reply.data == expected
        assert len(forks) >= 4
        for child in forks:
            stream = child.resume()
            list(stream)
            assert stream.reply.data == expected
            child.close()
