"""Exact to the byte: whatever way an actor comes to a point, it goes on in the same way.

A control conversation runs straight through, never saved and never forked. At each of its turns
another one branches in every way that there is; each branch gets the same next message, which
gives up to 32 more tokens, and must then be the control: linear memory, globals, KV cache, logits,
tokens, clock, random numbers.

The short form runs on a tiny random model, the long one (`make test-exact`) on SmolLM2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from isthmus import Actor, Model, Runtime
from isthmus.snapshot import open_snapshot
from tests.exact.digest import digest
from tests.exact.worker import ask

CHAT = [
    "Tell me a story about a ship that sails to an island.",
    "Go on with the story, and bring in a storm.",
    "Who is the captain, and what does she want?",
    "Now tell me how it all ends, in great detail.",
]
SAMPLED = ["n_ctx=1024", "max_tokens=32", "temperature=0.8"]


@dataclass
class Case:
    """A model and how it is computed, and a conversation."""

    path: Path
    messages: list[str]
    guest: str = "chat"
    args: list[str] = field(default_factory=lambda: list(SAMPLED))
    settings: dict[str, Any] = field(default_factory=dict)
    threads: int = 2

    def spawn(self, runtime: Runtime, model: Model) -> Actor:
        return runtime.spawn(
            self.guest, models={"default": model}, args=self.args, seed=5, clock_ns=10**18
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        common = {"model": str(self.path), "settings": self.settings, "threads": self.threads}
        return ask(**{**common, "guest": self.guest, "args": self.args, **request})


def control(case: Case) -> list[dict[str, Any]]:
    """The digest after each message of a conversation that nobody disturbs."""
    with Runtime(device="cpu", threads=case.threads) as runtime:
        actor = case.spawn(runtime, runtime.load_model(case.path, **case.settings))
        digests = []
        for message in case.messages:
            actor.send(message)
            digests.append(digest(actor))
    return digests


class Branches:
    """Every way to go on with an actor, each as a function that handles one message."""

    def __init__(self, case: Case, runtime: Runtime, model: Model, folder: Path) -> None:
        self.case = case
        self.runtime = runtime
        self.model = model
        self.folder = folder
        self.store = folder / "store"
        self.store.mkdir()

    def at(self, turn: int, actor: Actor) -> Iterator[tuple[str, Callable[[str], dict[str, Any]]]]:
        file = self.folder / f"{turn}.safetensors"
        actor.snapshot(file)
        saved = actor.snapshot(self.store, name=f"turn-{turn}")
        fork = actor.fork()[0]
        yield "fork", lambda message: self._here(fork, message)
        yield "fork of a fork", lambda message: self._here(actor.fork()[0].fork()[0], message)
        yield "one of three forks", lambda message: self._here(actor.fork(3)[2], message)
        for verify in ("full", "lazy"):
            yield f"file, {verify}", lambda m, v=verify: self._here(self._restored(file, v), m)
        yield "incremental", lambda message: self._here(self._restored(saved.path, "full"), message)
        yield "fork of a restored", lambda m: self._here(self._restored(file).fork()[0], m)
        yield "saved again", lambda message: self._here(self._resaved(file), message)
        yield "another process", lambda message: self._elsewhere(file, message)
        yield "another process, incremental", lambda m: self._elsewhere(saved.path, m)

    def _restored(self, path: Path, verify: str = "full") -> Actor:
        return self.runtime.restore(
            path, models={"default": self.model}, require="exact", verify=verify
        )

    def _resaved(self, path: Path) -> Actor:
        again = self.folder / "again.safetensors"
        self._restored(path).snapshot(again)
        return self._restored(again)

    def _here(self, actor: Actor, message: str) -> dict[str, Any]:
        with actor:
            before = self.model.executor.counters.tokens_prefilled
            known = sum(session.n_tokens for session in actor.sessions)
            actor.send(message)
            prefilled = self.model.executor.counters.tokens_prefilled - before
            total = sum(session.n_tokens for session in actor.sessions)
            assert 0 < prefilled <= total - known  # what was known is not computed again
            return digest(actor)

    def _elsewhere(self, path: Path, message: str) -> dict[str, Any]:
        answer = self.case.ask(restore=str(path), messages=[message])
        assert answer["level"] == "exact"
        assert answer["prefilled_by_restoring"] == 0
        known = sum(session.n_tokens for session in open_snapshot(path).manifest.sessions)
        total = sum(len(session["tokens"]) for session in answer["digest"]["sessions"])
        assert 0 < answer["prefilled"] <= total - known
        return answer["digest"]


def every_branch_equals_the_control(case: Case, folder: Path) -> None:
    expected = control(case)
    assert len(expected[-1]["sessions"][0]["tokens"]) > len(expected[0]["sessions"][0]["tokens"])
    with Runtime(device="cpu", threads=case.threads) as runtime:
        model = runtime.load_model(case.path, **case.settings)
        actor = case.spawn(runtime, model)
        branches = Branches(case, runtime, model, folder)
        for turn, message in enumerate(case.messages):
            if turn:
                for name, go_on in branches.at(turn, actor):
                    assert go_on(message) == expected[turn], f"turn {turn}: {name}"
            actor.send(message)
            assert digest(actor) == expected[turn], f"turn {turn}: go on in the same process"


def killed_process_goes_on(case: Case, folder: Path) -> None:
    """Each turn is handled by a process of its own, which is killed with SIGKILL after it."""
    expected = control(case)
    file = folder / "agent.safetensors"
    for turn, message in enumerate(case.messages):
        request = {"restore": str(file)} if turn else {}
        answer = case.ask(messages=[message], snapshot=str(file), **request)
        assert answer["digest"] == expected[turn], f"turn {turn}"


def deterministic_whatever_computes(case: Case, folder: Path) -> None:
    """Another thread count and another chunk size give the same bytes, also after a restore."""
    expected = control(case)
    with Runtime(device="cpu", threads=2) as runtime:
        actor = case.spawn(runtime, runtime.load_model(case.path, **case.settings))
        for message in case.messages[:-1]:
            actor.send(message)
        actor.snapshot(folder / "agent.safetensors")
    for threads, chunk in ((1, 512), (2, 16), (1, 7)):
        changed = {"threads": threads, "settings": {**case.settings, "prefill_chunk": chunk}}
        answer = case.ask(messages=case.messages, **changed)
        assert answer["digest"] == expected[-1], changed
        path = str(folder / "agent.safetensors")
        answer = case.ask(restore=path, messages=case.messages[-1:], **changed)
        assert answer["digest"] == expected[-1], f"restored, {changed}"


def cold_is_warm(path: Path, tokens: list[int]) -> None:
    """Prefilled at once, or token by token: the same KV cache, logits and next 32 tokens."""
    seen = []
    for messages in (
        ["tokens " + " ".join(map(str, tokens))],
        [f"tokens {token}" for token in tokens],
    ):
        with Runtime(device="cpu", threads=2) as runtime:
            model = runtime.load_model(path, deterministic=True)
            actor = runtime.spawn("bench", models={"default": model}, args=["n_ctx=512"])
            for message in messages:
                actor.send(message)
            steps = [digest(actor)["sessions"]]
            for _ in range(32):
                actor.send("sequence 1")
                steps.append(digest(actor)["sessions"])
            seen.append(steps)
    assert seen[0] == seen[1]


def test_tiny_branches(tiny: Path, tmp_path: Path) -> None:
    every_branch_equals_the_control(Case(tiny, CHAT[:2]), tmp_path)


def test_tiny_killed(tiny: Path, tmp_path: Path) -> None:
    killed_process_goes_on(Case(tiny, CHAT[:2]), tmp_path)


def test_tiny_deterministic(tiny: Path, tmp_path: Path) -> None:
    case = Case(tiny, CHAT[:2], settings={"deterministic": True})
    deterministic_whatever_computes(case, tmp_path)


def test_tiny_cold_is_warm(tiny: Path) -> None:
    cold_is_warm(tiny, [3 + 7 * i % 250 for i in range(40)])


@pytest.mark.long
@pytest.mark.model
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_branches(smollm2: Path, tmp_path: Path, kv_type: str) -> None:
    every_branch_equals_the_control(Case(smollm2, CHAT, settings={"kv_type": kv_type}), tmp_path)


@pytest.mark.long
@pytest.mark.model
def test_branches_token_by_token(smollm2: Path, tmp_path: Path) -> None:
    """After a prefill, 32 messages of one token each, branching at each of them."""
    messages = ["prefill 300 7", *["sequence 1"] * 32]
    case = Case(smollm2, messages, guest="bench", args=["n_ctx=512"])
    expected = control(case)
    with Runtime(device="cpu", threads=2) as runtime:
        model = runtime.load_model(smollm2)
        actor = case.spawn(runtime, model)
        actor.send(messages[0])
        actor.snapshot(tmp_path / "agent.safetensors")
        ways = {
            "fork": actor.fork()[0],
            "fork of a fork": actor.fork()[0].fork()[0],
            "restored": runtime.restore(tmp_path / "agent.safetensors", models={"default": model}),
            "the same": actor,
        }
        for step, message in enumerate(messages[1:], 1):
            for name, way in ways.items():
                way.send(message)
                assert digest(way) == expected[step], f"step {step}: {name}"


@pytest.mark.long
@pytest.mark.model
def test_killed(smollm2: Path, tmp_path: Path) -> None:
    killed_process_goes_on(Case(smollm2, CHAT), tmp_path)


@pytest.mark.long
@pytest.mark.model
def test_deterministic(smollm2: Path, tmp_path: Path) -> None:
    case = Case(smollm2, CHAT, settings={"deterministic": True})
    deterministic_whatever_computes(case, tmp_path)


@pytest.mark.long
@pytest.mark.model
def test_cold_is_warm(smollm2: Path) -> None:
    cold_is_warm(smollm2, [1000 + 37 * i for i in range(300)])
