"""Agents whose model libllama computes: they live as all agents do."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from isthmus import Actor, Limits, Model, Runtime
from isthmus.config import Environment
from isthmus.errors import (
    ContextFull,
    DeviceFailed,
    GuestFailed,
    ModelBusy,
    ModelUnsupported,
    SnapshotInvalid,
    SnapshotMismatch,
)
from isthmus.model.adopted import embedder
from isthmus.model.adopted.embedder import AdoptedEmbedder
from isthmus.model.adopted.model import AdoptedModel
from isthmus.snapshot import open_snapshot
from isthmus.snapshot.manifest import decode_manifest
from isthmus.snapshot.report import inspect
from tests.adopted.conftest import DENSE, STATEFUL
from tests.e2e.test_cli import complains, isthmus
from tests.server.conftest import Serving
from tests.tiny_gguf import TinyModel

CHAT = ["n_ctx=512", "max_tokens=12", "temperature=0"]
EACH = pytest.mark.parametrize("name", ["mimo2", "falcon-h1", "mamba"])
OF_STATE = pytest.mark.parametrize("name", STATEFUL)
Files = Callable[[str], Path]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    environment = Environment(cache=tmp_path_factory.mktemp("cache"))
    with Runtime(device="cpu", threads=2, environment=environment) as runtime:
        yield runtime


def chat(runtime: Runtime, model: Model, *args: str, **how: object) -> Actor:
    options = [*CHAT, *args]
    models = {"default": model}
    return runtime.spawn("chat", models=models, args=options, seed=1, clock_ns=0, **how)  # type: ignore[arg-type]


@pytest.fixture
def model(request: pytest.FixtureRequest, shared: Runtime, tiny_file: Files) -> Iterator[Model]:
    name = request.getfixturevalue("name")
    model = shared.load_model(tiny_file(name), prefill_chunk=32)
    yield model
    shared.unload_model(model)


@EACH
def test_an_agent_is_the_same_however_it_comes_back(
    name: str, model: Model, shared: Runtime, tmp_path: Path
) -> None:
    actor = chat(shared, model)
    actor.send("What is an isthmus?")
    saved = actor.snapshot(tmp_path / "agent.safetensors")
    (fork,) = actor.fork()
    restored = shared.restore(saved, models={"default": model}, require="exact")
    assert restored.restored is not None
    assert restored.restored.level == "exact"
    expected = actor.send("And a strait?")
    assert expected.text
    evicted, actors = chat(shared, model), [fork, restored]
    evicted.send("What is an isthmus?")
    assert evicted.evict() > 0
    for it in (*actors, evicted):
        assert it.send("And a strait?").text == expected.text
        last = it.sessions[0]
        assert last.tokens == actor.sessions[0].tokens
        assert last.logits.tobytes() == actor.sessions[0].logits.tobytes()


@EACH
def test_what_fails_can_be_undone(name: str, model: Model, shared: Runtime) -> None:
    limits = Limits(on_failure="undo")
    actor, untouched = (chat(shared, model, limits=limits) for _ in range(2))
    for it in (actor, untouched):
        it.send("One")
    with pytest.raises(ContextFull):
        actor.send("Two " * 400)
    assert actor.send("Three").text == untouched.send("Three").text


@OF_STATE
def test_a_state_that_a_failed_pass_spoilt_is_known_wherever_it_goes(
    name: str, model: Model, shared: Runtime, tmp_path: Path
) -> None:
    actor = chat(shared, model)
    actor.send("One")
    saved = actor.snapshot(tmp_path / "good.safetensors")
    assert open_snapshot(saved.path, None).manifest.format_version == 5
    actor.sessions[0].lose()
    saved = actor.snapshot(tmp_path / "spoilt.safetensors")
    assert open_snapshot(saved.path, None).manifest.format_version == 6
    (fork,) = actor.fork()
    restored = shared.restore(saved, models={"default": model})
    for it in (actor, fork, restored):
        with pytest.raises(DeviceFailed, match="truncate it to 0"):
            it.sessions[0].require_whole()
    answers = [it.send("Two").text for it in (actor, fork, restored)]  # all of it is computed again
    assert answers == [answers[0]] * 3
    for it in (actor, fork, restored):
        it.sessions[0].require_whole()


@EACH
def test_a_turn_that_fails_is_taken_back_by_the_guest(
    name: str, model: Model, shared: Runtime
) -> None:
    """A model that takes no token back has its session emptied, and all of it prefilled again."""
    actor = chat(shared, model)
    actor.send("One")
    n_tokens = actor.sessions[0].n_tokens
    full = _first_that_is_full(actor)
    n_kept = full.sessions[0].n_tokens
    assert 0 < n_kept <= n_tokens if model.truncates else n_kept == 0
    assert full.send("Three").text
    assert full.sessions[0].n_tokens > n_tokens


def _first_that_is_full(actor: Actor) -> Actor:
    """A fork whose message fitted into the context, and no token of an answer did."""
    for n in range(420, 480):
        (fork,) = actor.fork()
        try:
            fork.send("x" * n)
        except ContextFull:
            return fork
        fork.close()
    raise AssertionError("no message was too long")


@EACH
def test_agents_at_once_have_the_bits_of_each_alone(
    name: str, model: Model, shared: Runtime
) -> None:
    questions = [f"Question {i}: what is {i} bridges?" for i in range(6)]
    alone = [chat(shared, model).send(it).text for it in questions]
    actors = [chat(shared, model) for _ in questions]
    found: dict[int, str] = {}

    def ask(i: int) -> None:
        found[i] = actors[i].send(questions[i]).text

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(questions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(len(questions))] == alone


@EACH
def test_grammars_and_candidates_need_logits_alone(
    name: str, model: Model, shared: Runtime
) -> None:
    actor = chat(shared, model, "regex=[0-9]{3}")
    assert actor.send("A number?").text.isdigit()
    host = chat(shared, model, "sampler=host").send("One").text
    assert host == chat(shared, model).send("One").text


def test_a_text_for_which_there_is_no_memory_harms_no_other(
    shared: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = TinyModel("bert", with_tokenizer=True).write(tmp_path / "bert.gguf")
    model = shared.load_model(path, graph="adopted")
    expected = model.embed(["two cats"])[0].tobytes()

    def refuse(_embedder: AdoptedEmbedder, n_ctx: int) -> int:
        raise DeviceFailed(f"no memory for {n_ctx} tokens")

    with monkeypatch.context() as patch:
        patch.setattr(embedder, "N_CTX_MULTIPLE", 8)
        model._embedder.close()
        assert model.embed(["two cats"])[0].tobytes() == expected
        patch.setattr(AdoptedEmbedder, "_new", refuse)
        with pytest.raises(DeviceFailed, match="no memory"):
            model.embed(["the isthmus is a land bridge " * 3])
    assert model.embed(["two cats"])[0].tobytes() == expected


@OF_STATE
def test_guests_that_take_tokens_back_hear_why_they_cannot(
    name: str, model: Model, shared: Runtime
) -> None:
    bench = shared.spawn("bench", models={"default": model}, args=["n_ctx=256"], seed=1)
    bench.send("prefill 20 1")
    with pytest.raises(ModelUnsupported, match="truncate to 0 and prefill again"):
        bench.send("truncate 10")
    bench.send("truncate 0")
    bench.send("prefill 20 1")
    assert bench.sessions[0].n_tokens == 20


@OF_STATE
def test_a_summary_begins_with_the_instruction_each_time(
    name: str, model: Model, shared: Runtime
) -> None:
    def fresh() -> Actor:
        args = ["n_ctx=512", "max_tokens=8", "temperature=0"]
        return shared.spawn("summarise", models={"default": model}, args=args, seed=1)

    actor = fresh()
    first = actor.send("One bridge. " * 10).text
    assert actor.send("Two seas. " * 10).text == fresh().send("Two seas. " * 10).text
    assert actor.send("One bridge. " * 10).text == first


def test_a_snapshot_names_the_library_and_its_memories(
    shared: Runtime, tiny_file: Files, tmp_path: Path
) -> None:
    model = shared.load_model(tiny_file("falcon-h1"))
    actor = chat(shared, model)
    actor.send("Hello")
    saved = actor.snapshot(tmp_path / "agent.safetensors")
    manifest = open_snapshot(saved.path, None).manifest
    assert manifest.format_version == 5
    assert manifest.models[0].graph == model.graph == manifest.models[0].graph
    assert model.graph.startswith("libllama ")
    (session,) = manifest.sessions
    memories = actor.sessions[0].layout.memories  # type: ignore[attr-defined]
    assert session.memories == memories
    assert len(memories) == 2
    with safe_open(saved.path, "np") as file:  # type: ignore[no-untyped-call]
        stem = f"session.{session.handle}"
        logits = file.get_tensor(f"{stem}.logits")
        sizes = [file.get_tensor(f"{stem}.memory.{i}").nbytes for i in (0, 1)]
    assert np.array_equal(logits, actor.sessions[0].logits)
    assert sizes == list(memories)
    (report,) = inspect(open_snapshot(saved.path, None)).sessions
    assert 0 < report.kv_nbytes_used < sum(memories)


def test_bytes_of_another_graph_are_refused_or_computed_again(
    shared: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = TinyModel(with_tokenizer=True).write(tmp_path / "tiny.gguf")
    own, adopted = (shared.load_model(path, graph=it) for it in ("own", "adopted"))
    actors = [chat(shared, it) for it in (own, adopted)]
    assert len({it.send("Hello").text for it in actors}) == 1
    saved = [it.snapshot(tmp_path / f"{i}.safetensors") for i, it in enumerate(actors)]
    expected = actors[0].send("Again").text
    for file, other in zip(saved, (adopted, own), strict=True):
        with pytest.raises(SnapshotMismatch, match=r"its graph was that of .* \(load_model\(graph"):
            shared.restore(file, models={"default": other})
        again = shared.restore(file, models={"default": other}, require="replayed")
        assert again.send("Again").text == expected
    monkeypatch.setattr(AdoptedModel, "graph", "libllama 0.7.0, ggml 0.27.0")
    with pytest.raises(SnapshotMismatch, match=r"is that of libllama 0\.7\.0"):
        shared.restore(saved[1], models={"default": adopted})


def test_a_manifest_that_contradicts_itself_is_refused(
    shared: Runtime, tiny_file: Files, tmp_path: Path
) -> None:
    model = shared.load_model(tiny_file("falcon-h1"))
    actor = chat(shared, model)
    actor.send("Hello")
    saved = actor.snapshot(tmp_path / "agent.safetensors")
    text = json.loads(open_snapshot(saved.path, None).manifest.encode())
    text["format_version"] = 4
    with pytest.raises(SnapshotInvalid, match="5 that of graphs of a library"):
        decode_manifest(json.dumps(text))
    text["format_version"] = 5
    text["sessions"][0]["memories"] = []
    text["sessions"][0]["n_layer"] = 0
    with pytest.raises(SnapshotInvalid, match="has no KV cache"):
        decode_manifest(json.dumps(text)).require_parts()


def test_a_model_with_open_sessions_stays(shared: Runtime, tiny_file: Files) -> None:
    model = shared.load_model(tiny_file("mamba"))
    actor = chat(shared, model)
    actor.send("Hello")
    with pytest.raises(ModelBusy, match="1 sessions"):
        model.close()
    shared.unload_model(model)
    assert actor.state == "closed"
    assert model.closed


def test_embeddings_are_those_of_our_own_graph(shared: Runtime, tmp_path: Path) -> None:
    path = TinyModel("bert", with_tokenizer=True).write(tmp_path / "bert.gguf")
    own, adopted = (shared.load_model(path, graph=it) for it in ("own", "adopted"))
    texts = ["the isthmus is a land bridge", "two cats", "sea"]
    assert adopted.embeds
    assert not adopted.generates
    for normalised in (False, True):
        rows = [it.embed(texts, normalised=normalised) for it in (own, adopted)]
        for a, b in zip(*rows, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    actor = shared.spawn("embed", models={"default": adopted}, args={"output": "f32"})
    for text, expected in zip(texts, adopted.embed(texts), strict=True):
        assert adopted.embedding_of(actor.send(text).data).tobytes() == expected.tobytes()
    with pytest.raises((ModelUnsupported, GuestFailed), match="no text"):
        chat(shared, adopted).send("Hello")


@pytest.mark.slow
def test_the_command_line_says_what_a_model_lacks(tiny_file: Files) -> None:
    path = str(tiny_file("falcon-h1"))
    found = json.loads(isthmus("inspect-model", path, "--json").stdout)
    assert found["graph"].startswith("libllama ")
    assert (found["truncates"], found["generates"], found["embeds"]) == (False, True, False)
    assert len(found["lacks"]) == 4
    assert found["session_nbytes"] > 0
    assert "lacks    LoRA adapters" in isthmus("inspect-model", path).stdout
    complains(
        isthmus("inspect-model", path, "--graph", "own"),
        2,
        "Isthmus writes no graph",
    )
    complains(isthmus("inspect-model", path, "--n-ctx", "0"), 2, "n_ctx is 0; tiny takes 1 to 512")


@pytest.mark.slow
def test_a_snapshot_is_restored_by_another_graph(tiny_file: Files, tmp_path: Path) -> None:
    """The same file's or another's, if its tokens may be computed again."""
    file, path = tmp_path / "it.safetensors", tiny_file("qwen3")
    model = ("--model", path, "--arg", "max_tokens=4", "--device", "cpu")
    assert isthmus("snapshot", "chat", *model, "--message", "Hi", "--out", file).returncode == 0
    restore = ("restore", file, "--message", "Go on", "--device", "cpu", "--model")
    complains(isthmus(*restore, path, "--graph", "adopted"), 2, "--require replayed, allows it")
    for options in ((path, "--graph", "adopted"), (tiny_file("falcon-h1"),)):
        done = isthmus(*restore, *options, "--require", "replayed")
        assert (done.returncode, "is that of libllama" in done.stderr) == (0, True)


@pytest.mark.slow
def test_both_ways_are_measured_beside_libllama(tmp_path: Path) -> None:
    path = TinyModel(with_tokenizer=True).write(tmp_path / "tiny.gguf")
    options = ("--device", "cpu", "--sizes", "40", "--repeats", "1", "--json")
    rows = json.loads(isthmus("bench", "ways", "--model", path, *options).stdout)["results"]
    assert [it["graph"] for it in rows] == ["own", "adopted", "llama.cpp"]
    assert all(it["identical"] and it["tokens_per_s"] > 0 for it in rows)
    assert rows[1]["open_ms"] > 0 < rows[1]["next_token_ms"]


@pytest.mark.slow
def test_a_model_with_a_state_is_measured_beside_libllama(tiny_file: Files) -> None:
    """It takes no token back, so its prompts are prefilled again."""
    options = (
        "--model",
        str(tiny_file("falcon-h1")),
        "--device",
        "cpu",
        "--repeats",
        "1",
        "--json",
    )
    for question in ("decode", "snapshot"):
        done = isthmus("bench", question, *options, "--sizes", "40")
        (row,) = json.loads(done.stdout)["results"]
        assert (done.returncode, row["identical"]) == (0, True)
    done = isthmus("bench", "prefill", *options, "--sizes", "9999")
    assert json.loads(done.stdout)["results"][0]["tokens"] == 512  # all that its context has
    (row,) = json.loads(isthmus("bench", "agents", *options, "--sizes", "2").stdout)["results"]
    assert row["identical"]
    complains(isthmus("bench", "ways", *options), 2, "no two ways to compare")


@pytest.mark.slow
def test_a_server_answers_with_an_adopted_model(tiny_file: Files, tmp_path: Path) -> None:
    """And keeps its durable agents, which go on after it was killed."""
    path = tiny_file(DENSE[0])
    serving = Serving(tmp_path / "data", "--model", f"it={path}", "--n-ctx", "512")
    with ExitStack() as stack:
        stack.callback(lambda: serving.process.kill())  # noqa: PLW0108 - `start` makes another
        ask = {"model": "it", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}
        ask["temperature"] = 0
        said = [serving.post("/v1/chat/completions", ask)["choices"][0]["message"] for _ in "ab"]
        assert said[0] == said[1]
        assert said[0]["content"]
        agent = serving.post("/v1/agents", {"args": {"max_tokens": "12"}, "seed": 1})["id"]
        serving.post(f"/v1/agents/{agent}/messages", {"input": "Hello"})
        fork = serving.post(f"/v1/agents/{agent}/fork", {"position": 1})["id"]
        expected = serving.post(f"/v1/agents/{fork}/messages", {"input": "More"})["output"]
        serving.kill()
        serving.start()
        answer = serving.post(f"/v1/agents/{agent}/messages", {"input": "More"})
        assert answer["output"] == expected
        assert serving.stop() == 0
