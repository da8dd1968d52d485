"""The guests of docs/cookbook.md do what their pages say, on tiny models."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from isthmus.actor import Actor
from isthmus.config import Limits
from isthmus.errors import GuestFailed, LimitExceeded, ProjectError, ToolchainMissing
from isthmus.model import Model
from isthmus.model.step import Step
from isthmus.projects import RECIPES, build, new_from_recipe, new_script_from_recipe
from isthmus.runtime import Runtime
from tests.tiny_gguf import TinyLlama

pytest.importorskip("ziglang")
pytestmark = pytest.mark.slow
Cooked = Callable[..., Actor]
BRANCHES_QUESTION = "\nScore of this answer so far, from 0 to 9: "
"""What the judges of `branches` read."""


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The module of each recipe in C."""
    folder = tmp_path_factory.mktemp("cookbook")
    projects = [new_from_recipe(folder / it, it) for it in RECIPES]
    return {it.name: build(it) for it in projects if it.lang == "c"}


@pytest.fixture(scope="module")
def amateur_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("amateur") / "amateur.gguf"
    return TinyLlama(with_tokenizer=True, seed=2).write(path)


@pytest.fixture
def model(runtime: Runtime, tiny: Path) -> Model:
    return runtime.load_model(tiny)


@pytest.fixture
def cooked(runtime: Runtime, modules: dict[str, Path]) -> Cooked:
    """Begins an agent of a recipe, over models by name."""

    def cooking(recipe: str, args: dict[str, object], **models: Model) -> Actor:
        args = {"n_ctx": 512, "seed": 1, **args}
        known = [it.name for it in runtime.load_guest(modules[recipe]).card.options]  # type: ignore[union-attr]
        chosen = {name: value for name, value in args.items() if name in known}
        return runtime.spawn(modules[recipe], models=models, args=chosen)

    return cooking


def greedy(runtime: Runtime, model: Model, message: str, n: int) -> bytes:
    """What decoding token by token says."""
    args = {"temperature": 0, "repeat_penalty": 1, "max_tokens": n, "n_ctx": 512}
    return bytes(runtime.spawn("chat", models={"default": model}, args=args).send(message).data)


def test_votes_say_what_most_say(cooked: Cooked, runtime: Runtime, model: Model) -> None:
    scripted = runtime.load_model("fake:the same answer")
    agent = cooked("votes", {"n": 7, "report": 1}, default=scripted)
    assert agent.send("What?").text == "7 of 7: the same answer"
    assert agent.usage.sessions == 7
    args = {
        "n": 9,
        "report": 1,
        "max_tokens": 1,
        "temperature": 1.2,
        "repeat_penalty": 1,
        "top_k": 2,
    }
    said = cooked("votes", args, default=model).send("What?").text
    votes = int(said.split()[0])
    assert 5 <= votes <= 9, "two tokens are drawn from: one of them has most of nine votes"


def test_votes_draw_on_their_own(cooked: Cooked, model: Model) -> None:
    args = {"n": 32, "report": 1, "max_tokens": 4, "temperature": 5, "top_k": 0, "min_p": 0}
    said = cooked("votes", {**args, "top_p": 1}, default=model).send("What?").text
    assert int(said.split()[0]) < 32


def test_a_judge_scores_what_fits_the_schema(cooked: Cooked, model: Model) -> None:
    def said(n: int) -> bytes:
        args = {"n": n, "max_tokens": 6, "report": 1, "temperature": 2}
        return bytes(cooked("judge", args, default=model).send("Why?").data)

    one, several = said(1), said(12)
    assert re.match(rb"[0-9]: ", one), "a model that says anything is held to the schema"
    assert int(several[:1]) >= int(one[:1]), "the first of them is the same answer"


def test_branches_are_written_and_judged_in_one_pass_each_token(
    cooked: Cooked, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    decode_batch = model.executor.decode_batch

    def counted(steps: Sequence[Step]) -> None:
        rows.append(len(steps))
        decode_batch(steps)

    monkeypatch.setattr(model.executor, "decode_batch", counted)
    args = {"step": 5, "max_tokens": 20, "report": 1, "temperature": 2, "top_k": 0, "min_p": 0}
    agent = cooked("branches", args, default=model)
    figure = agent.send("Why?").text.rpartition("\n")[2]
    n, steps, passes, tokens, best, mean = map(float, re.findall(r"\d+(?:\.\d+)?", figure))
    n_question = len(model.tokenizer.encode(BRANCHES_QUESTION))
    written = passes - steps * n_question  # by passes over all branches
    assert n == 8
    assert 0 < written <= 20
    assert written < tokens <= n * written
    assert sum(rows) == tokens + n * steps * n_question
    assert len(rows) == (passes if model.batches else sum(rows))
    assert 0 <= mean < best <= 9
    assert agent.usage.sessions == 16


def test_branches_that_draw_nothing_are_one_answer(
    cooked: Cooked, runtime: Runtime, model: Model
) -> None:
    args = {"n": 3, "step": 4, "max_tokens": 12, "temperature": 0, "repeat_penalty": 1}
    said = cooked("branches", args, default=model).send("Go").data
    assert said == greedy(runtime, model, "Go", 12)


def test_branches_end_when_the_best_one_does(cooked: Cooked, runtime: Runtime) -> None:
    scripted = runtime.load_model("fake:Ankara, of course.")
    args = {"step": 3, "temperature": 0}
    assert cooked("branches", args, default=scripted).send("What?").text == "Ankara, of course."


def test_search_finds_what_is_at_least_as_probable_as_greedy_decoding(
    cooked: Cooked, model: Model
) -> None:
    def found(width: int) -> float:
        args = {"width": width, "max_tokens": 12, "report": 1}
        said = cooked("search", args, default=model).send("Go").data
        return float(said.partition(b": ")[0])

    narrow, wide = found(1), found(6)
    assert narrow < 0
    assert wide >= narrow


def test_search_of_width_one_is_greedy(cooked: Cooked, runtime: Runtime, model: Model) -> None:
    said = cooked("search", {"width": 1, "max_tokens": 8}, default=model).send("Go").data
    assert said == greedy(runtime, model, "Go", 8)


def test_contrastive_decoding_departs_from_the_poor_model(
    cooked: Cooked, runtime: Runtime, model: Model, amateur_file: Path
) -> None:
    amateur = runtime.load_model(amateur_file)
    models = {"default": model, "amateur": amateur}
    args = {"max_tokens": 12, "alpha": 0.000001}
    alone = cooked("contrastive", {**args, "beta": 0}, **models).send("Go").data
    assert alone == greedy(runtime, model, "Go", 12)
    contrasted = cooked("contrastive", {**args, "beta": 2}, **models).send("Go").data
    assert contrasted != alone


def test_a_watermark_shows_to_who_knows_the_key(cooked: Cooked, model: Model) -> None:
    args = {"temperature": 1.5, "top_k": 0, "min_p": 0, "top_p": 1, "repeat_penalty": 1}
    distances = {}
    for delta in (0, 4):
        agent = cooked("watermark", {**args, "delta": delta, "max_tokens": 100}, default=model)
        agent.send("Write")
        assert agent.usage.tokens_out > 20
        distances[delta] = float(agent.send("detect").text)
    assert abs(distances[0]) < 4 < distances[4]


def test_guesses_change_no_token_and_save_passes(
    cooked: Cooked, runtime: Runtime, model: Model
) -> None:
    expected = greedy(runtime, model, "again and again", 96)
    assert (
        cooked("ngram", {"max_tokens": 96}, default=model).send("again and again").data == expected
    )
    report = {"max_tokens": 96, "report": 1}
    said = cooked("ngram", report, default=model).send("again and again").text
    passes, tokens = map(int, re.findall(r"\d+", said))
    assert passes < 0.7 * tokens, "a tiny model repeats itself"
    plainly = cooked("ngram", {**report, "n_guess": 0}, default=model).send("again and again").text
    assert plainly == f"{tokens} passes, {tokens} tokens"


def test_a_plugin_ends_when_its_fuel_does(runtime: Runtime, modules: dict[str, Path]) -> None:
    plugin = runtime.spawn(modules["plugin"], limits=Limits(fuel=1_000_000, on_failure="undo"))
    assert plugin.send("three short words").text == "3"
    with pytest.raises(LimitExceeded, match="fuel"):
        plugin.send("loop")
    assert plugin.send("it goes on").text == "3"


def test_a_recipe_that_there_is_not_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="did you mean votes"):
        new_from_recipe(tmp_path / "agent", "vote")


@pytest.mark.long
def test_a_choice_is_the_most_probable_answer(runtime: Runtime, tmp_path: Path) -> None:
    """In Rust."""
    try:
        module = build(new_from_recipe(tmp_path / "choice", "choice"))
    except ToolchainMissing as error:
        pytest.skip(str(error))
    said = runtime.load_model("fake:strait")
    args = {"choices": "isthmus|strait|island", "report": 1, "n_ctx": 256}
    agent = runtime.spawn(module, models={"default": said}, args=args)
    share, words = agent.send("Which?").text.split(" % of ")
    assert (int(share) > 34, words) == (True, "3 choices: strait")
    tokens = agent.usage.tokens_in
    assert agent.send("Which?").text.endswith("strait")
    assert agent.usage.tokens_in - tokens < tokens, "the question is not read again"
    lonely = runtime.spawn(module, models={"default": said}, args={"choices": "one"})
    with pytest.raises(GuestFailed, match="at least two answers"):
        lonely.send("Which?")


@pytest.mark.long
def test_answers_agree(runtime: Runtime, model: Model, tmp_path: Path) -> None:
    """In JavaScript; needs `isthmus pull js`."""
    script = new_script_from_recipe(tmp_path / "agree", "agree")
    said = runtime.load_model("fake:the same answer")
    args = {"report": 1, "agree": 4, "n_ctx": 256}
    agent = runtime.spawn(script, models={"default": said}, args=args)
    assert agent.send("What?").text == "4 of 4: the same answer"
    args = {"report": 1, "most": 6, "max_tokens": 6, "temperature": 5, "n_ctx": 256, "seed": 1}
    agent = runtime.spawn(script, models={"default": model}, args={**args, "top_k": 0, "top_p": 1})
    assert agent.send("What?").text.startswith("1 of 6: "), "no two of so random answers agree"
    wrong = runtime.spawn(script, models={"default": said}, args={"agree": 0})
    with pytest.raises(GuestFailed, match="agree: give a whole number"):
        wrong.send("What?")
    with pytest.raises(ProjectError, match="there already"):
        new_script_from_recipe(tmp_path / "agree", "agree")
