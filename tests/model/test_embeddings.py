"""Embeddings against libllama on the same file: equal to the byte, however they are asked for."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from isthmus import Runtime
from isthmus.benchmarks.rival import Libllama
from isthmus.config import Limits, ModelSettings
from isthmus.device.graph import Graph
from isthmus.errors import (
    ContextFull,
    LimitExceeded,
    ModelFileError,
    ModelUnsupported,
    SettingsError,
    TokenError,
)
from isthmus.memory import Region
from isthmus.model import Model
from isthmus.model.architectures import architectures
from isthmus.model.shape.hparams import Pooling
from isthmus.units import MIB, HostAddr
from tests.model.bert_reference import embed as reference_embed
from tests.model.bert_reference import read_gguf
from tests.model.test_exactness import random_tokens
from tests.tiny_gguf import COMBINED, ENCODERS, RECIPES, TinyModel

N_CTX = 600
TEXTS = ["The isthmus is a land bridge.", "A cat sleeps.", "Two seas!", "cat " * 200]
LENGTHS = (1, 9, 300, N_CTX)
UNIT = 1e-6
"""How far the length of a normalised embedding may be from 1: the sum is one of f32."""


def test_every_architecture_has_a_recipe() -> None:
    assert architectures() == sorted(RECIPES | COMBINED | ENCODERS)


def test_each_architecture_is_as_short_as_a_page() -> None:
    folder = Path(__file__).parents[2] / "src/isthmus/model/architectures"
    lengths = {it.name: len(it.read_text().splitlines()) for it in folder.glob("*.py")}
    assert {name: n for name, n in lengths.items() if n > 130} == {}


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with Runtime(device="cpu", threads=2) as runtime:
        yield runtime


def bert(path: Path, architecture: str = "bert", quantisation: str = "Q8_0", **how: object) -> Path:
    model = TinyModel(architecture, quantisation=quantisation, with_tokenizer=True, overrides=how)
    return model.write(path / f"{architecture}.gguf")


@pytest.mark.parametrize("pooling", [each for each in Pooling if each is not Pooling.RANK])
@pytest.mark.parametrize("quantisation", ["F32", "F16", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_equal_libllama(
    name: str, quantisation: str, pooling: Pooling, runtime: Runtime, tmp_path: Path
) -> None:
    path = bert(tmp_path, name, quantisation, pooling_type=int(pooling))
    model = runtime.load_model(path)
    with Libllama(runtime.device, path, N_CTX, ModelSettings(), embeddings=True) as rival:
        for n in LENGTHS:
            tokens = random_tokens(n, model.n_vocab, seed=n)
            (raw,) = model.embed([tokens], normalised=False)
            theirs = rival.embed(tokens)
            assert raw.shape == ((n, 128) if pooling is Pooling.NONE else (128,))
            assert raw.tobytes() == theirs.tobytes()
            (unit,) = model.embed([tokens])
            lengths = np.linalg.norm(unit, axis=-1)
            assert np.abs(lengths - 1).max() < UNIT
            assert np.allclose(unit * np.linalg.norm(raw, axis=-1, keepdims=True), raw, atol=1e-5)


@pytest.mark.parametrize("pooling", [Pooling.MEAN, Pooling.LAST])
@pytest.mark.parametrize("name", [name for name, it in RECIPES.items() if not it.mixed])
def test_decoders_that_say_how_equal_libllama(
    name: str, pooling: Pooling, runtime: Runtime, tmp_path: Path
) -> None:
    how = {"pooling_type": int(pooling)}
    if name == "phi3":  # factors by the text's length here, by the context there
        how["rope.scaling.original_context_length"] = 1024
    path = TinyModel(name, quantisation="Q8_0", overrides=how).write(tmp_path / "x.gguf")
    model = runtime.load_model(path)
    assert model.generates
    with Libllama(runtime.device, path, N_CTX, ModelSettings(), embeddings=True) as rival:
        for n in LENGTHS:
            tokens = random_tokens(n, model.n_vocab, seed=n)
            (raw,) = model.embed([tokens], normalised=False)
            assert raw.tobytes() == rival.embed(tokens).tobytes()


@pytest.mark.parametrize("name", ENCODERS)
def test_an_independent_bert_agrees(name: str, runtime: Runtime, tmp_path: Path) -> None:
    path = bert(tmp_path, name, "F32")
    model, weights = runtime.load_model(path), read_gguf(path)
    for tokens in (random_tokens(n, model.n_vocab, seed=n) for n in LENGTHS):
        (ours,) = model.embed([tokens])
        assert float(ours @ reference_embed(weights, tokens)) > 0.9999


# ---------------------------------------------------------------------- alone and together


@pytest.fixture(params=[*ENCODERS, "llama"])
def model(request: pytest.FixtureRequest, runtime: Runtime, tmp_path: Path) -> Model:
    return runtime.load_model(bert(tmp_path, request.param, pooling_type=1))


def bits(model: Model, texts: list[str]) -> list[bytes]:
    return [it.tobytes() for it in model.embed(texts)]


def test_alone_together_and_at_once_are_the_same_bits(model: Model) -> None:
    alone = [bits(model, [text])[0] for text in TEXTS]
    assert bits(model, TEXTS) == alone
    assert bits(model, TEXTS[::-1]) == alone[::-1]
    found: dict[int, list[bytes]] = {}

    def work(number: int) -> None:
        found[number] = bits(model, TEXTS)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(found.values()) == [alone] * 4
    assert len(set(alone)) == len(TEXTS)


def test_guests_and_forks_of_them_are_the_same_bits_without_a_copy(
    model: Model, runtime: Runtime, tmp_path: Path
) -> None:
    alone = bits(model, TEXTS)
    before = runtime.counters().bytes_copied
    actor = runtime.spawn("embed", models={"default": model}, args={"output": "f32"})
    assert [actor.send(text).data for text in TEXTS] == alone
    assert runtime.counters().bytes_copied == before
    saved = actor.snapshot(tmp_path / "saved.safetensors")
    (fork,) = actor.fork(1)
    restored = runtime.restore(saved.path, models={"default": model})
    for each in (fork, restored):
        assert [each.send(text).data for text in TEXTS] == alone


def test_a_model_that_decodes_meanwhile_changes_nothing(runtime: Runtime, tmp_path: Path) -> None:
    talking = runtime.load_model(
        TinyModel(quantisation="Q8_0", with_tokenizer=True).write(tmp_path / "llama.gguf")
    )
    model = runtime.load_model(bert(tmp_path))
    alone = bits(model, TEXTS)
    embedding = runtime.spawn("embed", models={"default": model}, args={"output": "f32"})
    chatting = runtime.spawn("chat", models={"default": talking}, args={"max_tokens": 60})
    with chatting.stream("Tell me of the sea.") as stream:
        assert [embedding.send(text).data for text in TEXTS] == alone
        assert len(list(stream)) > 0


def test_jobs_are_the_whole_and_a_stopped_pass_leaves_the_next_one_alone(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, thread = random_tokens(300, model.n_vocab), model.device.compute_thread
    (whole,) = model.embed([tokens])
    monkeypatch.setattr("isthmus.model.jobs.JOB_S", 0.0)
    with Region.reserve(MIB, nbytes=MIB) as region, model.device.bind(region) as binding:
        place = HostAddr(region.base + 4096)
        for stop_at in (0, 2, 1, 0):
            jobs = model.embedding_jobs(tokens, binding, place)
            assert not model.is_embedding
            n_jobs = 1
            while n_jobs != stop_at and thread.run(lambda jobs=jobs: next(jobs, True)) is None:
                assert model.is_embedding
                n_jobs += 1
            if stop_at:
                thread.run(lambda jobs=jobs: jobs.close())
            else:
                assert n_jobs >= model.hparams.n_layer
                with region.view(4096, whole.nbytes) as view:
                    assert bytes(view.memory) == whole.tobytes()
            assert not model.is_embedding


def test_one_embedding_at_a_time(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, thread = random_tokens(300, model.n_vocab), model.device.compute_thread
    monkeypatch.setattr("isthmus.model.jobs.JOB_S", 0.0)
    with Region.reserve(MIB, nbytes=MIB) as region, model.device.bind(region) as binding:
        place = HostAddr(region.base + 4096)

        def compute() -> None:
            with pytest.raises(TokenError, match=f"token {model.n_vocab} "):
                model.embedding_jobs([1, model.n_vocab], binding, place)
            jobs = model.embedding_jobs(tokens, binding, place)
            assert next(jobs) is None
            with pytest.raises(RuntimeError, match="is_embedding"):
                next(model.embedding_jobs(tokens, binding, place))
            with pytest.raises(RuntimeError, match="compute the rest"):
                model.embed_into(tokens, binding, place)
            assert model.is_embedding
            jobs.close()
            model.embed_into(tokens, binding, place)

        thread.run(compute)


@pytest.mark.parametrize("name", [*ENCODERS, "llama", "gemma3"])
def test_a_device_without_a_kernel_of_attention_takes_its_steps(
    name: str, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA has none for heads of 32, which the smallest models of all have."""
    path = bert(tmp_path, name, "F32", pooling_type=1)
    tokens = [random_tokens(n, 320, seed=n) for n in LENGTHS]
    whole = runtime.load_model(path).embed(tokens)
    refuses = runtime.device.refuses

    def refuses_flash(graph: Graph) -> str:
        nodes = [graph.library.ggml_graph_node(graph.pointer, i) for i in range(graph.n_nodes)]
        flash = [b"FLASH" in graph.library.ggml_op_desc(it).upper() for it in nodes]
        return "FLASH" if any(flash) else refuses(graph)

    monkeypatch.setattr(runtime.device, "refuses", refuses_flash)
    steps = runtime.load_model(path).embed(tokens)
    for a, b in zip(whole, steps, strict=True):
        assert 0.9999 < float(a @ b) < 1.0001
    monkeypatch.setattr(runtime.device, "refuses", lambda _graph: "everything")
    with pytest.raises(ModelUnsupported, match="no kernel for everything"):
        runtime.load_model(path).embed(tokens)


# ---------------------------------------------------------------------- the guest


def test_what_the_guest_embed_answers(runtime: Runtime, tmp_path: Path) -> None:
    model = runtime.load_model(bert(tmp_path))
    (raw,) = model.embed([TEXTS[0]], normalised=False)
    plain = runtime.spawn("embed", models={"default": model}, args={"normalise": 0})
    numbers = np.array(json.loads(plain.send(TEXTS[0]).text), dtype=np.float32)
    assert np.allclose(numbers, raw, rtol=1e-5)
    by_ids = runtime.spawn(
        "embed", models={"default": model}, args={"input": "ids", "output": "f32"}
    )
    tokens = model.tokenizer.encode(TEXTS[0], add_special=True)
    reply = by_ids.send(np.array(tokens, dtype=np.int32).tobytes())
    assert reply.data == bits(model, [TEXTS[0]])[0]
    assert reply.n_tokens == len(tokens)
    with pytest.raises(ContextFull, match=r"has 602 tokens; tiny embeds at most 600"):
        plain.send("cat " * 600)
    assert plain.send(TEXTS[0]).text.startswith("[")  # it goes on


def test_embeddings_of_each_token(runtime: Runtime, tmp_path: Path) -> None:
    model = runtime.load_model(bert(tmp_path, pooling_type=0))
    actor = runtime.spawn("embed", models={"default": model})
    rows = np.array(json.loads(actor.send("A cat.").text))
    (wanted,) = model.embed(["A cat."])
    assert np.allclose(rows, wanted, atol=1e-5)


def test_limits_count_its_tokens(runtime: Runtime, tmp_path: Path) -> None:
    model = runtime.load_model(bert(tmp_path))
    actor = runtime.spawn("embed", models={"default": model}, limits=Limits(tokens_in=20))
    assert actor.send("A cat.").n_tokens == 5
    with pytest.raises(LimitExceeded, match="tokens_in"):
        actor.send("cat " * 30)


# ---------------------------------------------------------------------- what is refused


def test_what_a_model_cannot_do_is_said(runtime: Runtime, tmp_path: Path) -> None:
    encoder = runtime.load_model(bert(tmp_path))
    decoder = runtime.load_model(TinyModel(with_tokenizer=True).write(tmp_path / "llama.gguf"))
    assert (encoder.generates, encoder.embeds) == (False, True)
    assert (decoder.generates, decoder.embeds) == (True, False)
    with pytest.raises(ModelUnsupported, match=r"makes no embeddings.*llama\.pooling_type"):
        decoder.embed(["x"])
    with pytest.raises(ModelUnsupported, match="embeddings and no text"):
        encoder.layout(256)
    with pytest.raises(ModelUnsupported, match="embeddings and no text"):
        runtime.spawn("chat", models={"default": encoder}).send("Hello")
    with pytest.raises(ModelUnsupported, match="makes no embeddings"):
        runtime.spawn("embed", models={"default": decoder}).send("Hello")
    for wrong, kind, said in (
        ([[320]], TokenError, "320 is not in the vocabulary"),
        ([[5], [-1]], TokenError, "-1 is not in"),
        ([[]], SettingsError, "no tokens"),
        ([[5] * 601], ContextFull, "601 tokens"),
        ("a text", SettingsError, r"give \[text\]"),
    ):
        with pytest.raises(kind, match=said):
            encoder.embed(wrong)  # type: ignore[arg-type]
    assert encoder.embed([]) == []


REFUSED = {
    "a reranker that has no scores": (
        TinyModel("bert", overrides={"pooling_type": 4}),
        ModelUnsupported,
        "a reranker without cls.output.weight",
    ),
    "an encoder that is none": (
        TinyModel("bert", overrides={"attention.causal": True}),
        ModelUnsupported,
        "attention.causal is not what",
    ),
    "a decoder that is none": (
        TinyModel("qwen3", overrides={"attention.causal": False}),
        ModelUnsupported,
        "attention.causal is not what",
    ),
    "no positions": (
        TinyModel("bert", without=("position_embd",)),
        ModelFileError,
        "no tensor position_embd.weight",
    ),
    "positions for other lengths": (
        TinyModel("bert", overrides={"context_length": 700}),
        ModelFileError,
        r"position_embd.weight has shape \[128, 600\]; expected \[128, 700\]",
    ),
    "a classifier": (
        TinyModel("bert", extra_tensors=("cls.weight",)),
        ModelUnsupported,
        "does not know, such as cls.weight",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_are_refused(name: str, runtime: Runtime, tmp_path: Path) -> None:
    case, kind, said = REFUSED[name]
    with pytest.raises(kind, match=said):
        runtime.load_model(case.write(tmp_path / "x.gguf"))


def test_without_token_types(runtime: Runtime, tmp_path: Path) -> None:
    path = TinyModel("bert", without=("token_types",), with_tokenizer=True).write(
        tmp_path / "x.gguf"
    )
    with Libllama(runtime.device, path, N_CTX, ModelSettings(), embeddings=True) as rival:
        (raw,) = runtime.load_model(path).embed([[2, 9, 3]], normalised=False)
        assert raw.tobytes() == rival.embed([2, 9, 3]).tobytes()


# ---------------------------------------------------------------------- WordPiece


def test_wordpiece(runtime: Runtime, tmp_path: Path) -> None:
    tokenizer = runtime.load_model(bert(tmp_path)).tokenizer

    def pieces(text: str) -> list[str]:
        return [tokenizer.decode([it]).decode() for it in tokenizer.encode(text)]

    assert "".join(pieces("The isthmus.")).split() == ["the", "isthmus", "."]
    assert pieces("sleeping")[-1] == "ing"
    assert tokenizer.encode("CAFÉ") == tokenizer.encode("cafe")
    assert tokenizer.encode("狗") == [1]  # unknown
    assert tokenizer.encode("", add_special=True) == [2, 3]


@pytest.mark.parametrize("missing", ["unk", "bos", "sep"])
def test_a_wordpiece_without_its_special_tokens_is_refused(
    missing: str, runtime: Runtime, tmp_path: Path
) -> None:
    """libllama would abort the process on the first text."""
    model = TinyModel("bert", n_vocab=100, with_tokenizer=True, without_tokens=(missing,))
    said = "no token for what it does not know" if missing == "unk" else "that it lacks"
    with pytest.raises(ModelFileError, match=said):
        runtime.load_model(model.write(tmp_path / "x.gguf"))
