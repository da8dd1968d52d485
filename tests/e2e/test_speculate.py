"""Speculation: what is said is what the target says alone, whatever the draft guesses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from isthmus import Actor, Limits, Model, Runtime
from isthmus.errors import GuestFailed, ModelNotFound
from tests.exact.digest import digest
from tests.tiny_gguf import TinyLlama

PROMPT = "An isthmus is a narrow strip of land."
REPORT = re.compile(r"passes=(\d+) drafted=(\d+) accepted=(\d+) tokens=([\d ]*)")


@pytest.fixture(scope="module")
def shared() -> Iterator[Runtime]:
    with Runtime(device="cpu", threads=1) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("speculate")
    kinds = {
        "target": TinyLlama(quantisation="Q8_0"),
        "f16": TinyLlama(quantisation="F16", n_embd=256, n_ff=512),
        "draft": TinyLlama(n_layer=1, quantisation="Q8_0"),
        "larger": TinyLlama(n_layer=1, n_vocab=352),
        "smaller": TinyLlama(n_layer=1, n_vocab=288),
        "short": TinyLlama(n_layer=1, n_ctx=256),
    }
    for name, kind in kinds.items():
        kind.with_tokenizer = True
        kind.write(folder / f"{name}.gguf")
    return {name: folder / f"{name}.gguf" for name in kinds}


def spawn(runtime: Runtime, target: Model, draft: Model | None, *args: str, **how: object) -> Actor:
    models = {"default": target} | ({"draft": draft} if draft else {})
    options = ["answer=report", "max_tokens=60", "n_ctx=512", *args]
    options += [] if draft else ["n_draft=0"]
    return runtime.spawn("speculate", models=models, args=options, seed=3, clock_ns=0, **how)  # type: ignore[arg-type]


def ask(actor: Actor, prompt: str = PROMPT) -> tuple[int, int, int, list[int]]:
    """Passes, drafted, accepted, and the tokens."""
    found = REPORT.fullmatch(actor.send(prompt).text)
    assert found is not None
    passes, drafted, accepted, tokens = found.groups()
    return int(passes), int(drafted), int(accepted), [int(token) for token in tokens.split()]


@pytest.mark.parametrize("target", ["target", "f16"])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("draft", ["target", "draft", "larger", "smaller", "short"])
def test_says_what_the_target_says_alone(
    shared: Runtime, files: dict[str, Path], target: str, draft: str, deterministic: bool
) -> None:
    """F16 weights are not multiplied exactly in several columns: then each row runs alone."""
    model = shared.load_model(files[target], deterministic=deterministic)
    assert model.batches or target == "f16"
    guesser = model if draft == target else shared.load_model(files[draft])
    for args in ([], ["temperature=0.7", "repeat_penalty=1.3"]):
        with spawn(shared, model, None, *args) as plain, spawn(shared, model, guesser, *args) as it:
            *_, expected = ask(plain)
            passes, drafted, accepted, tokens = ask(it)
            assert tokens == expected
            assert 0 <= accepted <= drafted
            assert passes + accepted >= len(tokens) - 1
            if guesser is model and not args:
                assert accepted == drafted
                assert passes < len(tokens) / 3


def test_the_plain_answer_is_that_of_the_model(shared: Runtime, files: dict[str, Path]) -> None:
    """Against one token after the other, without any guest's loop."""
    model = shared.load_model(files["target"])
    with (
        spawn(shared, model, shared.load_model(files["draft"])) as actor,
        shared.spawn("bench", models={"default": model}, args=["n_ctx=512"]) as bench,
    ):
        *_, tokens = ask(actor)
        prompt = actor.sessions[0].tokens.tolist()
        prompt = prompt[: len(prompt) - (len(tokens) - 1)]
        bench.send(f"tokens {' '.join(map(str, prompt))}")
        assert bench.send(f"sequence {len(tokens)}").text.split() == [str(it) for it in tokens]


def test_to_the_end_of_the_context(shared: Runtime, files: dict[str, Path]) -> None:
    model, short = (shared.load_model(files[name]) for name in ("target", "short"))
    for draft in (model, short):
        answers = []
        for guesser in (None, draft):
            with spawn(shared, model, guesser, "max_tokens=900") as actor:
                answers.append(ask(actor)[-1])
                assert actor.sessions[0].n_tokens >= 511
        assert answers[0] == answers[1]


def test_forked_saved_and_restored(shared: Runtime, files: dict[str, Path], tmp_path: Path) -> None:
    models = {name: shared.load_model(files[name]) for name in ("target", "draft")}
    given = {"default": models["target"], "draft": models["draft"]}
    with spawn(shared, models["target"], models["draft"]) as actor:
        ask(actor)
        saved = actor.snapshot(tmp_path / "a.safetensors")
        others = [actor.fork()[0], shared.restore(saved, models=given)]
        expected = ask(actor, "And then?")
        for other in others:
            assert ask(other, "And then?") == expected
            assert digest(other) == digest(actor)
            other.close()
        other_draft = shared.load_model(files["larger"])
        given["draft"] = other_draft  # another tokenizer: the guest begins anew
        with shared.restore(saved, models=given, require="replayed") as again:
            assert ask(again, "And then?")[-1] == expected[-1]
            assert Model.of(again.sessions[1]) is other_draft


def test_beside_others(shared: Runtime, files: dict[str, Path]) -> None:
    """Rows of speculation and single steps of others share passes, and nobody notices."""
    model, draft = (shared.load_model(files[name]) for name in ("target", "draft"))
    with spawn(shared, model, None) as plain:
        *_, expected = ask(plain)
    with shared.spawn("bench", models={"default": model}, args=["n_ctx=512"]) as alone:
        alone.send("prefill 30 1")
        hashed = alone.send("hash 150").text
    talker = shared.spawn("bench", models={"default": model}, args=["n_ctx=512"])
    talker.send("prefill 30 1")
    guessers = [spawn(shared, model, each) for each in (draft, model, draft)]
    streams = [talker.stream("hash 150"), *(it.stream(PROMPT) for it in guessers)]
    for stream in streams:
        list(stream)
    assert streams[0].reply.text == hashed
    for stream in streams[1:]:
        assert stream.reply.text.endswith("tokens=" + " ".join(map(str, expected)))


def test_limits_end_it_with_what_was_said(shared: Runtime, files: dict[str, Path]) -> None:
    model, draft = (shared.load_model(files[name]) for name in ("target", "draft"))
    with spawn(shared, model, None) as plain:
        *_, expected = ask(plain)
    with spawn(shared, model, draft, limits=Limits(tokens_out=40)) as actor:
        *_, tokens = ask(actor)
        assert 0 < len(tokens) < 41
        assert tokens == expected[: len(tokens)]


def test_streams_text(shared: Runtime, files: dict[str, Path]) -> None:
    model = shared.load_model(files["target"])
    texts = []
    for draft in (None, model):
        with spawn(shared, model, draft, "answer=text") as actor:
            stream = actor.stream(PROMPT)
            texts.append("".join(stream))
            assert stream.reply.text == texts[-1]
    assert texts[0] == texts[1] != ""


def test_a_draft_of_another_vocabulary_is_refused(
    shared: Runtime, files: dict[str, Path], smollm2: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny, other = shared.load_model(files["target"]), shared.load_model(smollm2)
    with spawn(shared, tiny, other) as actor:
        for _ in range(2):
            with pytest.raises(GuestFailed, match="EINVAL"):
                actor.send(PROMPT)
            assert actor.sessions == []
    assert "another vocabulary" in caplog.text


def test_bad_options_are_refused(shared: Runtime, files: dict[str, Path]) -> None:
    model = shared.load_model(files["target"])
    for arg in ("n_draft=32", "n_draft=-1", "answer=song", "max_tokens=0", "draft=nobody"):
        with spawn(shared, model, model, arg) as actor, pytest.raises((GuestFailed, ModelNotFound)):
            actor.send(PROMPT)
