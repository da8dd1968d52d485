"""Rerankers: the scores are those of libllama, by graphs of ours and by its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from isthmus import Runtime
from isthmus.benchmarks.rival import Libllama
from isthmus.cli import main
from isthmus.config import ModelSettings
from isthmus.device import Device
from isthmus.errors import ModelFileError, ModelUnsupported
from isthmus.model import Model, open_model
from tests.adopted.conftest import hashes_for
from tests.tiny_gguf import FIRST_SPECIAL, TinyModel

QUERY, DOCUMENTS = "the land", ["an isthmus is two", "the sea", "a cat", "land bridge two two"]
TEMPLATE = "<|im_start|>Q: {query}\nD: {document}<|im_end|>"
KINDS = {
    "bert": TinyModel("bert", n_scores=1, with_tokenizer=True),
    "bert, several scores": TinyModel("bert", n_scores=3, with_tokenizer=True),
    "qwen3": TinyModel("qwen3", n_scores=2, with_tokenizer=True, rerank_template=TEMPLATE),
}
EACH = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rank")
    return {kind: it.write(folder / f"{kind}.gguf") for kind, it in KINDS.items()}


@contextmanager
def opened(device: Device, path: Path, graph: str) -> Iterator[Model]:
    settings = ModelSettings(graph=graph)
    with closing(open_model(device, path, settings, hashes_for(path))) as model:
        yield model


@pytest.mark.parametrize("graph", ["own", "adopted"])
@EACH
def test_the_scores_are_those_of_libllama(
    kind: str, graph: str, device: Device, files: dict[str, Path]
) -> None:
    with (
        opened(device, files[kind], graph) as model,
        Libllama(device, files[kind], 512, ModelSettings(), embeddings=True) as rival,
    ):
        pairs = [model.rank_ids(QUERY, it) for it in DOCUMENTS]
        found = model.embed(pairs, normalised=False)
        expected = [rival.embed(ids)[: KINDS[kind].n_scores] for ids in pairs]
        assert [it.tobytes() for it in found] == [it.tobytes() for it in expected]
        assert len({it.tobytes() for it in found}) == len(DOCUMENTS)
        assert model.rank(QUERY, DOCUMENTS) == [float(it[0]) for it in expected]


def test_a_decoder_with_several_scores_has_shares(device: Device, files: dict[str, Path]) -> None:
    with opened(device, files["qwen3"], "own") as model:
        (scores,) = model.embed([model.rank_ids(QUERY, "the sea")], normalised=False)
        assert scores.shape == (2,)
        assert scores.sum() == pytest.approx(1)


def test_how_a_query_and_a_document_are_put_together(
    device: Device, files: dict[str, Path]
) -> None:
    with opened(device, files["bert"], "own") as model:
        token = model.tokenizer.encode
        assert model.rank_ids("the", "sea") == [2, *token("the"), 3, *token("sea")]
    with opened(device, files["qwen3"], "own") as model:
        text = "<|im_start|>Q: {document}\nD: a {query}<|im_end|>"
        ids = model.rank_ids("{document}", "a {query}")
        assert model.tokenizer.decode(ids, render_special=True).decode() == text
        plain = model.rank_ids("<|im_end|>", "b")
        assert plain.count(2) == 1, "only the template writes control tokens"
        assert FIRST_SPECIAL not in plain


def test_models_that_rank_nothing(device: Device, tmp_path: Path) -> None:
    path = TinyModel("bert", with_tokenizer=True).write(tmp_path / "bert.gguf")
    with opened(device, path, "own") as model:
        assert not model.ranks
        with pytest.raises(ModelUnsupported, match="is no reranker"):
            model.rank(QUERY, DOCUMENTS)


def test_files_that_are_wrong(device: Device, tmp_path: Path) -> None:
    headless = TinyModel("bert", with_tokenizer=True, overrides={"pooling_type": 4})
    with pytest.raises(ModelUnsupported, match=r"without cls\.output"):
        open_model(device, headless.write(tmp_path / "headless.gguf"), ModelSettings())
    foreign = TinyModel("llama", with_tokenizer=True, n_scores=1)
    with pytest.raises(ModelUnsupported, match="no rerankers of the architecture 'llama'"):
        open_model(device, foreign.write(tmp_path / "foreign.gguf"), ModelSettings())
    three = TinyModel(
        "bert",
        n_scores=1,
        with_tokenizer=True,
        overrides={"classifier.output_labels": ["a", "b", "c"]},
    )
    with pytest.raises(ModelFileError, match=r"cls\.output\.weight has shape"):
        open_model(device, three.write(tmp_path / "three.gguf"), ModelSettings())
    placeless = TinyModel("qwen3", n_scores=2, with_tokenizer=True, rerank_template="{query}")
    with (
        opened(device, placeless.write(tmp_path / "placeless.gguf"), "own") as model,
        pytest.raises(ModelUnsupported, match=r"without \{query\} or \{document\}"),
    ):
        model.rank(QUERY, DOCUMENTS)


def test_by_the_command_line(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    def run(*options: str) -> list[str]:
        asked = ["rerank", "--model", str(files["bert"]), "--device", "cpu", "--query", QUERY]
        assert main([*asked, *options]) == 0
        return capsys.readouterr().out.splitlines()

    told = [json.loads(line) for line in run("--json", *DOCUMENTS)]
    with Runtime(device="cpu") as runtime:
        scores = runtime.load_model(files["bert"]).rank(QUERY, DOCUMENTS)
    assert [it["index"] for it in told] == [*np.argsort(scores)[::-1]]
    assert all(it["score"] == pytest.approx(scores[it["index"]]) for it in told)
    (best,) = run("--top", "1", *DOCUMENTS)
    assert best.endswith(told[0]["text"])
    assert main(["rerank", "--model", str(files["bert"]), "--query", "x", "--top", "0", "y"]) == 2


def test_through_a_guest(files: dict[str, Path]) -> None:
    with Runtime(device="cpu", threads=2) as runtime:
        model = runtime.load_model(files["bert"])
        expected = model.embed([model.rank_ids(QUERY, "the sea")], normalised=False)[0]
        ids = np.array(model.rank_ids(QUERY, "the sea"), "<i4").tobytes()
        actor = runtime.spawn("embed", models={"default": model}, args=["input=ids", "output=f32"])
        assert actor.send(ids).data == expected.tobytes()
