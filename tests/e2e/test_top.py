"""Agents say the same tokens with the device's candidates and without, to the last draw."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from isthmus import Actor, Model, Runtime
from isthmus.device.cpu import CpuDevice
from isthmus.server.generation.words import Words
from isthmus.snapshot import open_snapshot
from tests.tiny_gguf import TinyLlama

PAIR = np.dtype([("logit", np.float32), ("token", np.int32)])
SAMPLERS = {
    "greedy": ["temperature=0"],
    "greedy with a penalty": ["temperature=0", "repeat_penalty=1.5", "repeat_last_n=20"],
    "top-k": ["temperature=1", "top_k=40"],
    "top-k of one": ["temperature=2", "top_k=1"],
    "all": ["temperature=0.8", "top_k=40", "top_p=0.9", "min_p=0.05", "repeat_penalty=1.3"],
    "hot": ["temperature=5", "top_k=200", "repeat_penalty=1.1", "repeat_last_n=5"],
}
UNDECIDED = {
    "all tokens": ["temperature=1"],
    "too many": ["temperature=1", "top_k=256"],
    "a penalty that raises": ["temperature=0", "repeat_penalty=0.7"],
}


@pytest.fixture(scope="module")
def finding() -> Iterator[Runtime]:
    """On a processor that finds candidates as a card does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CpuDevice, "finds_top", True)
        with Runtime(device="cpu", threads=2) as runtime:
            yield runtime


def with_ties(rows: np.ndarray, kind: gguf.GGMLQuantizationType) -> Any:
    """Quantises a matrix in which each row is there four times, one after the other."""
    return gguf.quants.quantize(np.repeat(rows[::4], 4, axis=0), kind)


TINY = TinyLlama(with_tokenizer=True, quantisation="Q8_0", n_vocab=1024, n_ctx=512)


@pytest.fixture(scope="module")
def model(finding: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Its vocabulary is searched in pieces."""
    return finding.load_model(TINY.write(tmp_path_factory.mktemp("top") / "q8.gguf"))


@pytest.fixture(scope="module")
def tied(finding: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Each of its logits is that of four tokens."""
    path = tmp_path_factory.mktemp("tied") / "tied.gguf"
    return finding.load_model(replace(TINY, quantise=with_ties).write(path))


def spawn(runtime: Runtime, model: Model, *args: str, seed: int = 1) -> Actor:
    given = ["n_ctx=512", f"seed={seed}", *args]
    return runtime.spawn("bench", models={"default": model}, args=given, seed=seed, clock_ns=0)


def candidates(actor: Actor) -> np.ndarray:
    """What the device left in the guest's memory."""
    top = actor.sessions[0].top
    assert top is not None
    with actor.region.view(top.ptr, top.nbytes) as view:
        return np.frombuffer(bytes(view.memory), PAIR)


def said(runtime: Runtime, model: Model, args: list[str]) -> list[list[str]]:
    """What eight agents say one by one, and what they go on to say together."""
    actors = [spawn(runtime, model, *args, seed=seed) for seed in range(8)]
    try:
        for i, actor in enumerate(actors):
            actor.send(f"prefill {20 + i} {i}")
        alone = [actor.send("sequence 30").text for actor in actors]
        streams = [actor.stream("sequence 30") for actor in actors]
        hashes = ["".join(stream) for stream in streams]
        return [alone, hashes, [actor.send("hash 3").text for actor in actors]]
    finally:
        for actor in actors:
            actor.close()


@pytest.mark.parametrize("name", [*SAMPLERS, *UNDECIDED])
@pytest.mark.parametrize("which", ["model", "tied"])
def test_the_same_tokens(
    finding: Runtime, name: str, which: str, request: pytest.FixtureRequest
) -> None:
    args, model = {**SAMPLERS, **UNDECIDED}[name], request.getfixturevalue(which)
    assert said(finding, model, [*args, "ask=1"]) == said(finding, model, args)


@pytest.mark.parametrize("name", SAMPLERS)
def test_candidates_are_what_decides(finding: Runtime, model: Model, name: str) -> None:
    """Logits that nobody reads may be anything."""
    with spawn(finding, model, *SAMPLERS[name], "ask=1") as actor:
        actor.send("prefill 20 3")
        session = actor.sessions[0]
        found = candidates(actor)
        session.logits[:] = np.nan
        actor.send("sequence 1")
        assert session.tokens[-1] in found["token"]


@pytest.mark.parametrize("name", UNDECIDED)
def test_nothing_is_asked_that_decides_nothing(finding: Runtime, model: Model, name: str) -> None:
    with spawn(finding, model, *UNDECIDED[name], "ask=1") as actor:
        actor.send("prefill 20 3")
        assert actor.sessions[0].top is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_candidates_that_decide_nothing(finding: Runtime, model: Model, value: float) -> None:
    """Then the guest reads the logits, and finds what it would find without."""
    texts = []
    for ask in ("ask=0", "ask=1"):
        with spawn(finding, model, ask) as actor:
            actor.send("prefill 20 3")
            logits = actor.sessions[0].logits
            if ask == "ask=1":
                top = actor.sessions[0].top
                assert top is not None
                with actor.region.view(top.ptr, top.nbytes) as view:
                    np.frombuffer(view.memory, PAIR)["logit"][:] = value
            logits[:] = -1.0
            logits[77] = logits[78] = 3.0
            actor.send("sequence 1")
            texts.append(actor.sessions[0].tokens[-1])
    assert texts == [77, 77]


def test_a_processor_finds_none_and_nothing_is_kept(
    runtime: Runtime, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CpuDevice, "finds_top", False)
    with spawn(runtime, runtime.load_model(tiny), "ask=1") as actor:
        actor.send("prefill 20 3")
        assert actor.sessions[0].top is None
        actor.snapshot(tmp_path / "s")
    assert open_snapshot(tmp_path / "s").manifest.format_version == 2


def test_forks_and_snapshots_go_on_asking(finding: Runtime, model: Model, tmp_path: Path) -> None:
    args = [*SAMPLERS["all"], "ask=1"]
    with spawn(finding, model, *args) as actor:
        actor.send("prefill 20 3")
        top = actor.sessions[0].top
        assert top is not None
        actor.snapshot(tmp_path / "s")
        (fork,) = actor.fork(1)
        wanted = actor.send("sequence 20").text
        left = candidates(actor).tobytes()
    assert open_snapshot(tmp_path / "s").manifest.format_version == 4
    again = finding.restore(tmp_path / "s", models={"default": model}, require="exact")
    for other in (fork, again):
        there = other.sessions[0].top
        assert there is not None
        assert (there.k, there.ptr) == (top.k, top.ptr)
        assert other.send("sequence 20").text == wanted
        assert candidates(other).tobytes() == left
        other.close()


def test_an_evicted_agent_goes_on_asking(finding: Runtime, model: Model) -> None:
    texts = []
    for evicted in (False, True):
        with spawn(finding, model, *SAMPLERS["all"], "ask=1") as actor:
            actor.send("prefill 20 3")
            if evicted:
                actor.evict()
            texts.append(actor.send("sequence 20").text)
            assert actor.sessions[0].top is not None
    assert texts[0] == texts[1]


def test_restored_where_none_are_found(
    finding: Runtime, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Candidates of the last step are used; those of the next one are not there."""
    with spawn(finding, model, *SAMPLERS["all"], "ask=1") as actor:
        actor.send("prefill 20 3")
        actor.snapshot(tmp_path / "s")
        wanted = actor.send("sequence 20").text
    monkeypatch.setattr(CpuDevice, "finds_top", False)
    with Runtime(device="cpu", threads=2) as runtime:
        other = runtime.load_model(model.path)
        with runtime.restore(tmp_path / "s", models={"default": other}) as actor:
            before = candidates(actor)
            assert before["token"][0] >= 0
            assert actor.send("sequence 20").text == wanted
            assert candidates(actor)["token"][0] == -1


def test_replayed_with_another_kind_of_cache(
    finding: Runtime, model: Model, tmp_path: Path
) -> None:
    with spawn(finding, model, "ask=1") as actor:
        actor.send("prefill 20 3")
        actor.snapshot(tmp_path / "s")
    other = finding.load_model(model.path, kv_type="f32")
    with finding.restore(tmp_path / "s", models={"default": other}, require="replayed") as actor:
        session = actor.sessions[0]
        found = candidates(actor)
        assert found["logit"][0] == session.logits.max()
        assert session.logits[found["token"][0]] == found["logit"][0]
        actor.send("sequence 3")


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.mark.parametrize(
    "args",
    [
        ["temperature=0", "repeat_penalty=1"],
        ["temperature=1", "seed=5"],
        ["temperature=1", "seed=5", f"json_schema={json.dumps(SCHEMA)}"],
        ["temperature=1", "seed=5", "sampler=host"],
    ],
    ids=["greedy", "sampled", "grammar", "host"],
)
def test_chat_says_the_same(
    finding: Runtime, model: Model, args: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def talk() -> list[str]:
        given = ["n_ctx=512", "max_tokens=20", *args]
        with finding.spawn("chat", models={"default": model}, args=given, seed=3) as actor:
            return [actor.send(text).text for text in ("the cat", "the sea", "two")]

    asked = talk()
    monkeypatch.setattr(type(model.executor.builder.finder), "can_find", False)
    assert talk() == asked


@pytest.mark.parametrize(
    "words",
    [
        Words(),
        Words(logprobs=5),
        Words(temperature=0.9, top_k=30, top_p=0.95),
        Words(temperature=0.9, top_k=30, repeat_penalty=1.2, repeat_last_n=16),
        Words(temperature=0.9),
        Words(bias="7:5,300:-100,12:2"),
        Words(temperature=0.9, top_k=5, bias="7:100"),
        Words(temperature=0.9, top_k=5, ignore_eos=1),
    ],
    ids=str,
)
def test_complete_says_the_same(
    finding: Runtime, model: Model, words: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request asks for what its own sampler needs; an agent that has served others as well."""
    given = replace(words, max_tokens=24, seed=11)
    prompts = [np.arange(n, dtype="<i4") for n in (3, 40, 130)]

    def answers() -> list[str]:
        with finding.spawn("complete", models={"default": model}, args={"n_ctx": 512}) as actor:
            actor.send(Words(max_tokens=2).line() + prompts[0].tobytes())
            return [actor.send(given.line() + it.tobytes()).text for it in prompts]

    asked = answers()
    monkeypatch.setattr(type(model.executor.builder.finder), "can_find", False)
    assert answers() == asked
