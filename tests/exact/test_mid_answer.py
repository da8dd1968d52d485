"""Exact to the bit in the middle of an answer: whatever is done between two of its tokens.

An answer that is sampled, bound by a grammar and computed with an adapter runs undisturbed, and
then again with a pause before every token. There it is forked, saved, evicted and restored, in this
process and in another one, and each branch ends as the undisturbed one: text, token ids, KV cache,
logits, counts, clock and random numbers.

The short form branches at some tokens of a tiny random model; the long ones (`make test-exact`) at
each of 200, and at every tenth of SmolLM2's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from isthmus import Actor, Capacity, Model, Runtime
from isthmus.snapshot import Store, open_snapshot
from tests.exact.digest import digest
from tests.exact.pausing import at_every_pause
from tests.exact.worker import ask
from tests.tiny_gguf import TinyLora, TinyModel

MESSAGE = "Tell me a story about a ship that sails to an island."
BASE = TinyModel(tied=False, quantisation="Q8_0", with_tokenizer=True)


@dataclass
class Case:
    """A model, an adapter of it if there is one, and how an answer is sampled."""

    path: Path
    n_tokens: int
    adapter: Path | None = None
    args: list[str] = field(default_factory=list)
    guest: str = "chat"
    least: int = 1
    """Characters that the answer has at least."""

    def __post_init__(self) -> None:
        form = f"regex=[a-zA-Z ,.]{{{self.least},}}"
        sampled = ["n_ctx=512", "temperature=0.9", "seed=3", form, f"max_tokens={self.n_tokens}"]
        self.args = [*sampled, *self.args]

    def open(self, runtime: Runtime) -> Model:
        base = runtime.load_model(self.path)
        if self.adapter is None:
            return base
        return runtime.adapt(base, {runtime.load_adapter(self.adapter, base): 0.7})

    def spawn(self, runtime: Runtime, model: Model) -> Actor:
        return runtime.spawn(
            self.guest, models={"default": model}, args=self.args, seed=5, clock_ns=10**18
        )


def seen(actor: Actor, text: str, n_tokens: int) -> dict[str, Any]:
    """All that can be told of an actor after its answer. Its memory has room for a stack more, and
    the guest's globals say where; the rest is the same."""
    found = digest(actor)
    for name in ("memory", "memory_nbytes", "globals"):
        del found[name]
    return {**found, "text": text, "n_tokens": n_tokens}


def resumed(actor: Actor) -> dict[str, Any]:
    """What becomes of an actor in the middle of an answer."""
    with actor:
        stream = actor.resume()
        rest = "".join(stream)
        reply = stream.reply
        assert reply.text.endswith(rest)
        return seen(actor, reply.text, reply.n_tokens)


class Branches:
    """What is done at each pause: actors and files in the middle of the answer, by their names."""

    def __init__(self, actor: Actor, folder: Path, points: range) -> None:
        self.actor, self.folder, self.points = actor, folder, points
        self.store = folder / "store"
        self.store.mkdir()
        self.forks: dict[int, list[Actor]] = {}
        self.files: dict[int, Path] = {}
        self.saved: dict[int, Path] = {}
        self.n = 0

    def at(self, n: int) -> None:
        self.n = n + 1
        if n not in self.points:
            return
        keeper, file = self.actor._keeper, self.folder / f"{n}.safetensors"
        self.forks[n] = keeper.while_paused(lambda: self.actor._children(3, None))
        self.files[n] = keeper.while_paused(lambda: keeper.save(file)).path
        store = Store(self.store)
        self.saved[n] = keeper.while_paused(lambda: keeper.save(store, f"at-{n}")).path

    def ends(self, runtime: Runtime, model: Model, n: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each way to go on from a point, and what comes of it."""
        first, second, third = self.forks[n]
        yield "fork", resumed(first)
        assert second.evict() > 0
        assert second.is_paused
        yield "evicted fork", resumed(second)
        yield "fork of a fork", resumed(third.fork()[0])
        third.close()
        restored = runtime.restore(self.files[n], models={"default": model}, require="exact")
        yield "restored", resumed(restored)
        lazy = runtime.restore(self.saved[n], models={"default": model}, verify="lazy")
        yield "restored from a store, and forked", resumed(lazy.fork()[0])
        lazy.close()


def every_pause_changes_nothing(case: Case, folder: Path, points: range) -> None:
    patient = Capacity(initialize_s=600)  # a long text goes through its grammar again
    with Runtime(device="cpu", threads=2, capacity=patient) as runtime:
        model = case.open(runtime)
        with case.spawn(runtime, model) as control:
            reply = control.send(MESSAGE)
            expected = seen(control, reply.text, reply.n_tokens)
        actor = case.spawn(runtime, model)
        branches = Branches(actor, folder, points)
        pieces, reply = at_every_pause(runtime, actor, MESSAGE, branches.at)
        assert "".join(pieces) == reply.text
        assert seen(actor, reply.text, reply.n_tokens) == expected
        n_steps = actor.usage.tokens_out
        assert n_steps > case.n_tokens // 2
        assert branches.n - n_steps in (1, 2)  # before the prompt, and before a token that ends it
        for n in branches.files:
            for name, found in branches.ends(runtime, model, n):
                assert found == expected, f"{name} at pause {n}"
    request = {"model": str(case.path), "threads": 2, "adapter": str(case.adapter or "")}
    answer = ask(**request, resume={n: str(path) for n, path in branches.files.items()})
    for n, found in answer["resumed"].items():
        assert found == expected, f"another process at pause {n}"
    assert len(answer["resumed"]) == len(branches.files) > 0


def test_tiny(tmp_path: Path) -> None:
    base = BASE.write(tmp_path / "base.gguf")
    adapter = TinyLora(BASE, alpha=32.0).write(tmp_path / "poet.gguf")
    every_pause_changes_nothing(Case(base, 20, adapter), tmp_path, range(0, 21, 4))


def test_tiny_64_bit(tmp_path: Path) -> None:
    base = BASE.write(tmp_path / "base.gguf")
    wide = str(Path("src/isthmus/guests/chat/chat64.wasm"))
    every_pause_changes_nothing(Case(base, 12, guest=wide), tmp_path, range(0, 13, 6))


def test_a_snapshot_says_that_it_is_in_the_middle(tmp_path: Path) -> None:
    case = Case(BASE.write(tmp_path / "base.gguf"), 12)
    with Runtime(device="cpu", threads=2) as runtime:
        actor = case.spawn(runtime, case.open(runtime))
        branches = Branches(actor, tmp_path, range(5, 6))
        at_every_pause(runtime, actor, MESSAGE, branches.at)
    manifest = open_snapshot(branches.files[5]).manifest
    assert manifest.format_version == 8
    message = manifest.actor.message
    assert message is not None
    assert (message.pending, message.tokens_out) == ("emit_token", 4)


@pytest.mark.long
@pytest.mark.parametrize("first", range(10))
def test_each_of_200_tokens(tmp_path: Path, first: int) -> None:
    """All pauses, a tenth of them in each of ten runs: their branches are in memory together."""
    base = BASE.write(tmp_path / "base.gguf")
    adapter = TinyLora(BASE, alpha=32.0).write(tmp_path / "poet.gguf")
    points = range(first, 201, 10)
    every_pause_changes_nothing(Case(base, 200, adapter, least=400), tmp_path, points)


@pytest.mark.long
@pytest.mark.model
def test_every_tenth_of_200_tokens(smollm2: Path, tmp_path: Path) -> None:
    """It pauses before each of them; what is kept of all of them would not fit into memory."""
    every_pause_changes_nothing(Case(smollm2, 200), tmp_path, range(0, 201, 10))
