"""The guest `complete` keeps what it can of a prompt, and no bit of an answer tells."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from isthmus import Model, Runtime
from isthmus.actor import Actor
from isthmus.errors import GuestFailed
from isthmus.model.probes.batch_probe import product
from isthmus.model.probes.exactness import ask_anew
from isthmus.server.generation.words import Words
from tests.tiny_gguf import TinyLlama

N_CTX = 1024
LENGTHS = (1, 2, 3, 63, 64, 65, 66, 126, 127, 128, 129, 511, 512, 513, 514, 640, 641, 700)


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with Runtime(device="cpu") as runtime:
        yield runtime


@pytest.fixture(scope="module")
def model(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("complete") / "model.gguf"
    return runtime.load_model(TinyLlama(quantisation="Q8_0").write(path))


def spawn(runtime: Runtime, model: Model, fine: int) -> Actor:
    args = {"n_ctx": N_CTX, "fine": fine}
    return runtime.spawn("complete", models={"default": model}, args=args)


def ask(actor: Actor, prompt: np.ndarray) -> tuple[bytes, int]:
    """The bytes of keys, values and logits after the prompt, and the tokens that were kept."""
    message = Words(max_tokens=1, seed=1).line() + prompt.astype("<i4").tobytes()
    began, kept, n_prompt = str(actor.send(message).text).split()[:3]
    assert (began, int(n_prompt)) == ("began", len(prompt))
    with actor.pinned():
        session = actor.sessions[0]
        layout = session.layout
        span = (ctypes.c_uint8 * layout.nbytes).from_address(session.base)
        rows = [
            bytes(span[offset : offset + nbytes]) for offset, nbytes in layout.rows(0, len(prompt))
        ]
        return b"".join([*rows, session.logits.tobytes()]), int(kept)


def test_cuts_are_exact_here(model: Model) -> None:
    assert model.exact_cuts


@pytest.mark.parametrize("fine", [0, 128, 512])
def test_every_prefix_has_the_bits_of_a_new_agent(
    runtime: Runtime, model: Model, fine: int
) -> None:
    random = np.random.default_rng(fine)
    tokens = random.integers(0, model.n_vocab, max(LENGTHS))
    fresh = {}
    for n in LENGTHS:
        with spawn(runtime, model, fine) as actor:
            fresh[n], kept = ask(actor, tokens[:n])
            assert kept == 0
    with spawn(runtime, model, fine) as actor:
        for n in random.choice(LENGTHS, 60):
            other = tokens[:n].copy()
            other[n // 2 :] = random.integers(0, model.n_vocab, n - n // 2)
            ask(actor, other)
            state, kept = ask(actor, tokens[:n])
            assert state == fresh[n], (n, kept)
            wanted = min(n // 2, n - 2) if n <= fine else 0
            assert kept >= wanted, (n, kept)


def test_forks_keep_it_too(runtime: Runtime, model: Model) -> None:
    tokens = np.arange(200)
    with spawn(runtime, model, 512) as actor:
        fresh, _ = ask(actor, tokens)
        (fork,) = actor.fork()
        with fork:
            ask(actor, tokens[::-1])
            assert ask(fork, tokens) == (fresh, 198)


def test_the_probe_finds_cuts_that_matter(
    runtime: Runtime, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = TinyLlama(quantisation="F16", n_embd=256).write(tmp_path / "f16.gguf")
    f16 = runtime.load_model(path)
    assert not f16.exact_cuts  # F16 products of several columns are added in another order
    f16.close()

    def wrong(*args: object) -> bytes:
        result = product(*args)  # type: ignore[arg-type]
        return result[:-1] + b"\0"

    monkeypatch.setattr("isthmus.model.probes.cut_probe.product", wrong)
    monkeypatch.setattr("isthmus.model.probes.pack_probe.product", wrong)
    monkeypatch.setattr(model._exactness, "_recall", ask_anew)  # nothing wrong is kept for the file
    model._exactness._known.clear()
    assert not model.exact_cuts
    assert not model.exact_packing
    assert len(model.widths.classes) == 1
    monkeypatch.undo()
    model._exactness._known.clear()


def tokens_of(actor: Actor, **words: object) -> list[int]:
    """The ids of an answer of 24 tokens."""
    prompt = np.arange(5, 40, dtype="<i4").tobytes()
    said = Words(max_tokens=24, ignore_eos=1, seed=1, **words).line()  # type: ignore[arg-type]
    began, *lines, end = str(actor.send(said + prompt).text).splitlines()
    assert (began[:6], end) == ("began ", "end length")
    return [int(line) for line in lines]


def test_a_thought_is_closed_when_its_tokens_are_used_up(runtime: Runtime, model: Model) -> None:
    actor = spawn(runtime, model, 0)
    free = tokens_of(actor)
    unused = next(it for it in range(3, 250) if it not in free)
    close = [unused, unused + 1, unused]
    bound = {"thinking": 4, "closes": f"{unused}", "close": ",".join(map(str, close))}
    for in_thought, most in ((1, 4), (1, 0), (1, 20)):
        thought = {**bound, "thinking": most, "in_thought": in_thought}
        found = tokens_of(actor, **thought)
        assert found[:most] == free[:most]
        assert found[most : most + 3] == close
        assert len(found) == 24
    assert tokens_of(actor, **bound) == free  # no thought was opened
    assert tokens_of(actor, **bound, opens=f"{unused + 1}") == free


def test_a_thought_that_the_model_opens_and_closes(runtime: Runtime, model: Model) -> None:
    actor = spawn(runtime, model, 0)
    free = tokens_of(actor)
    unused = next(it for it in range(3, 250) if it not in free)
    first = next(n for n in range(1, 24) if free[n] not in free[:n])
    opened = tokens_of(actor, thinking=2, opens=f"{free[0]}", close=f"{unused}")
    assert opened[:3] == free[:3]
    assert opened[3] == unused
    pair = f"{free[first - 1]},{free[first]}"
    closed = tokens_of(actor, thinking=first + 1, in_thought=1, closes=pair, close=f"{unused}")
    assert closed == free  # it closed the thought itself, just in time


@pytest.mark.parametrize("wrong", ["1,,2", "x", "-1", "999999", ",".join(["1"] * 33)])
def test_ids_that_are_none(runtime: Runtime, model: Model, wrong: str) -> None:
    actor = spawn(runtime, model, 0)
    with pytest.raises(GuestFailed):
        actor.send(Words(max_tokens=1, close=wrong).line() + b"\1\0\0\0")
    with pytest.raises(GuestFailed):
        actor.send(b"max_tokens=1\n" + b"\1\0\0\0")  # the ids do not lie where they must
    assert ask(actor, np.arange(9))
