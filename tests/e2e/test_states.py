"""Agents whose model keeps a state: forked, saved and undone as others are, by checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from isthmus import Actor, Limits, Model, Runtime
from isthmus.config import Environment
from isthmus.errors import ContextFull, GuestFailed, LimitExceeded, ModelUnsupported
from isthmus.model.own.stateful_session import StatefulSession
from isthmus.server.generation.words import Words
from isthmus.snapshot import open_snapshot
from tests.tiny_gguf import TinyModel

LATER_WITHOUT_THOUGHTS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'][:4] if m['role'] == "
    "'assistant' else m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
"""As people's models have it: what was thought is not written again."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    environment = Environment(cache=tmp_path_factory.mktemp("cache"))
    with Runtime(device="cpu", threads=2, environment=environment) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    folder = tmp_path_factory.mktemp("states")

    def write(name: str, **how: str) -> Path:
        path = folder / f"{name}{len(how)}.gguf"
        model = TinyModel(name, quantisation="Q8_0", with_tokenizer=True, **how)  # type: ignore[arg-type]
        return path if path.exists() else model.write(path)

    return write


@pytest.fixture
def model(shared: Runtime, file: Callable[..., Path]) -> Model:
    return shared.load_model(file("qwen35"))


def chat(runtime: Runtime, model: Model, *more: str, **how: object) -> Actor:
    args = ["n_ctx=512", "max_tokens=12", "temperature=0", *more]
    return runtime.spawn("chat", models={"default": model}, args=args, seed=1, clock_ns=0, **how)  # type: ignore[arg-type]


def test_a_fork_and_a_restored_agent_go_on_alike(
    shared: Runtime, model: Model, tmp_path: Path
) -> None:
    actor = chat(shared, model)
    for text in ("One", "Two, and a bit more than that"):
        actor.send(text)
    saved = actor.snapshot(tmp_path / "saved.safetensors")
    manifest = open_snapshot(saved.path, None).manifest
    (session,) = manifest.sessions
    assert (manifest.format_version, session.n_checkpoints) == (6, 2)
    assert session.states_nbytes == model.hparams.states_nbytes  # type: ignore[attr-defined]
    restored = shared.restore(saved.path, models={"default": model})
    assert restored.restored is not None
    assert restored.restored.level == "exact"
    agents = [actor, restored, *actor.fork(2)]
    assert len({it.send("Three").text for it in agents}) == 1
    before = actor.sessions[0].n_tokens
    for it in agents:  # each has the checkpoint of its own turn's beginning
        with pytest.raises(ContextFull):
            it.send("x" * 500)
        assert it.sessions[0].n_tokens == before
    assert len({it.send("Four").text for it in agents}) == 1
    for it in agents:
        it.close()


def test_a_turn_that_fails_goes_back_to_its_beginning(shared: Runtime, model: Model) -> None:
    letters = "regex=[a-z]{20,}"  # with others, a template writes an answer in another way
    actor, untouched = chat(shared, model, letters), chat(shared, model, letters)
    for it in (actor, untouched):
        it.send("One")
    n_tokens = actor.sessions[0].n_tokens
    full = _first_that_is_full(actor)
    assert full.sessions[0].n_tokens == n_tokens
    assert full.send("Three").text == untouched.send("Three").text


def _first_that_is_full(actor: Actor) -> Actor:
    """A fork whose message fitted into the context, and the answer did not."""
    for n in range(380, 480, 4):
        (fork,) = actor.fork()
        try:
            fork.send("x" * n)
        except ContextFull:
            return fork
        fork.close()
    raise AssertionError("no message was too long")


@pytest.mark.parametrize("checkpoints", [0, 1, 2])
def test_a_conversation_that_is_written_anew_goes_back_a_little(
    checkpoints: int, shared: Runtime, file: Callable[..., Path]
) -> None:
    path = file("lfm2", chat_template=LATER_WITHOUT_THOUGHTS)
    model = shared.load_model(path, checkpoints=checkpoints)
    texts = ("A first question, of some length", "And a second one", "And a third one as well")
    with chat(shared, model) as actor:
        prefilled = []
        for text in texts:
            before = actor.usage.tokens_in
            actor.send(text)
            prefilled.append(actor.usage.tokens_in - before)
    whole = len("<|im_start|>user\n") + len(texts[0])
    if checkpoints == 2:
        assert prefilled[2] < prefilled[0] + 40  # the turn, and the last words before it
    else:
        assert prefilled[2] > prefilled[1] + whole // 2 > prefilled[0]


def test_complete_keeps_what_it_can_and_no_bit_tells(shared: Runtime, model: Model) -> None:
    tokens = np.random.default_rng(0).integers(0, model.n_vocab, 700)
    lengths = (1, 2, 64, 129, 300, 512, 640, 700)
    assert model.exact_cuts
    for fine in (0, 256):
        args = {"n_ctx": 1024, "fine": fine}
        fresh = {}
        for n in lengths:
            with shared.spawn("complete", models={"default": model}, args=args) as actor:
                fresh[n], kept = ask(actor, tokens[:n])
                assert kept == 0
        with shared.spawn("complete", models={"default": model}, args=args) as actor:
            found = []
            for n in (700, 640, 700, 300, 512, 129, 640, 64, 2, 1, 300, 300, 700):
                state, kept = ask(actor, tokens[:n])
                assert state == fresh[n], (n, kept)
                found.append(kept)
            assert found[2] >= 512  # one that goes on as the one before did
            assert found[-2] >= 172  # the same once more


def ask(actor: Actor, prompt: np.ndarray) -> tuple[bytes, int]:
    """The bytes of states and logits after the prompt, and the tokens that were kept."""
    message = Words(max_tokens=1, seed=1).line() + prompt.astype("<i4").tobytes()
    kept = int(str(actor.send(message).text).split()[1])
    with actor.pinned():
        (session,) = actor.sessions
        assert isinstance(session, StatefulSession)
        states = session.binding.read(session._states_at, session.layout.states_nbytes)
        return states + session.logits.tobytes(), kept


def test_summarise_comes_back_to_its_instruction(shared: Runtime, model: Model) -> None:
    args = ["temperature=0", "max_tokens=8", "n_ctx=256"]
    with shared.spawn("summarise", models={"default": model}, args=args, seed=1) as actor:
        n_tokens = []
        for _ in range(3):
            before = actor.usage.tokens_in
            actor.send("Two seas.")
            n_tokens.append(actor.usage.tokens_in - before)
    assert n_tokens[1] == n_tokens[2] < n_tokens[0] / 2


def test_the_host_takes_a_checkpoint_after_each_message(
    shared: Runtime, file: Callable[..., Path]
) -> None:
    path = file("qwen35")
    for after_each in (False, True):
        model = shared.load_model(path, checkpoints=3, message_checkpoints=after_each)
        with shared.spawn("bench", models={"default": model}, args={"n_ctx": 256}) as actor:
            actor.send("tokens 1 2 3 4 5 6 7 8")
            told = actor.send("sequence 4").text
            if not after_each:
                with pytest.raises(
                    ModelUnsupported, match="cannot be cut to 8: truncate to 0, and"
                ):
                    actor.send("truncate 8")
                continue
            actor.send("truncate 8")
            with pytest.raises(GuestFailed):
                actor.send("decode 1")  # there are no logits
            actor.send("truncate 0")
            actor.send("tokens 1 2 3 4 5 6 7 8")
            assert actor.send("sequence 4").text == told


def test_checkpoints_count_as_memory_of_sessions(
    shared: Runtime, file: Callable[..., Path]
) -> None:
    models = [shared.load_model(file("qwen35"), checkpoints=n) for n in (0, 8)]
    few, many = (it.layout(256).kv_nbytes for it in models)
    assert many > few + 8 * models[0].hparams.states_nbytes - 512  # type: ignore[attr-defined]
    limits = Limits(kv_nbytes=few + 4096)
    for model in models:
        with shared.spawn(
            "bench", models={"default": model}, args={"n_ctx": 256}, limits=limits
        ) as actor:
            if model is models[1]:
                with pytest.raises(LimitExceeded, match="kv_nbytes"):
                    actor.send("prefill 4")
            else:
                assert actor.send("prefill 4").text == "length=4"
