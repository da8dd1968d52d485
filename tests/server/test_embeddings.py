"""`/v1/embeddings`, by OpenAI's own client, unmodified, and what is said where it cannot be."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from isthmus import Runtime
from tests.server.conftest import Serving
from tests.server.test_agents import new_agent
from tests.tiny_gguf import TinyModel

TEXTS = ["The isthmus is a land bridge.", "A cat sleeps.", "Two seas!"]
MODELS = {
    "bert": TinyModel("bert", with_tokenizer=True, quantisation="Q8_0"),
    "nomic": TinyModel("nomic-bert", with_tokenizer=True, quantisation="Q8_0"),
    "tokens": TinyModel("bert", with_tokenizer=True, overrides={"pooling_type": 0}),
    "tiny": TinyModel(with_tokenizer=True, quantisation="Q8_0"),
    "ranker": TinyModel("bert", with_tokenizer=True, n_scores=1),
    "both": TinyModel("qwen3", with_tokenizer=True, overrides={"pooling_type": 3}),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: model.write(folder / f"{name}.gguf") for name, model in MODELS.items()}


@pytest.fixture(scope="module")
def serving(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    given = [it for name, path in files.items() for it in ("--model", f"{name}={path}")]
    serving = Serving(tmp_path_factory.mktemp("data"), *given, "--n-ctx", "512", "--slots", "3")
    yield serving
    assert serving.stop() == 0


@pytest.fixture
def client(serving: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def wanted(files: dict[str, Path]) -> dict[str, np.ndarray]:
    with Runtime(device="cpu") as runtime:
        names = ("bert", "nomic", "both")
        return {it: np.array(runtime.load_model(files[it]).embed(TEXTS)) for it in names}


@pytest.mark.parametrize("name", ["bert", "nomic", "both"])
def test_texts_and_ids_in_either_format(
    name: str, client: openai.OpenAI, serving: Serving, files: dict[str, Path], wanted: Any
) -> None:
    """The client asks for base64 by itself and decodes it."""
    made = client.embeddings.create(model=name, input=TEXTS)
    assert [it.index for it in made.data] == [0, 1, 2]
    assert (np.array([it.embedding for it in made.data], np.float32) == wanted[name]).all()
    assert made.model == name
    with Runtime(device="cpu") as runtime:
        encode = runtime.load_model(files[name]).tokenizer.encode
        ids = [encode(text, add_special=True) for text in TEXTS]
    n_tokens = sum(map(len, ids))
    assert made.usage.model_dump() == {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    for given, n in ((TEXTS[0], 1), ([TEXTS[0]], 1), (ids[0], 1), (ids, 3)):
        found = client.embeddings.create(model=name, input=given, encoding_format="float")
        vectors = np.array([it.embedding for it in found.data], np.float32)
        assert (vectors == wanted[name][:n]).all()
    raw = serving.post(
        "/v1/embeddings", {"model": name, "input": TEXTS, "encoding_format": "base64"}
    )
    data = b"".join(base64.b64decode(it["embedding"]) for it in raw["data"])
    assert data == wanted[name].tobytes()
    width = wanted[name].shape[1]
    assert client.embeddings.create(model=name, input="x", dimensions=width).data


def test_many_at_once_are_as_alone(client: openai.OpenAI, wanted: Any) -> None:
    def ask(n: int) -> np.ndarray:
        made = client.embeddings.create(model="bert", input=TEXTS[n % 3])
        return np.array(made.data[0].embedding, np.float32)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(24)))
    assert all((it == wanted["bert"][n % 3]).all() for n, it in enumerate(found))


def test_a_caller_who_leaves_frees_his_place(serving: Serving, wanted: Any) -> None:
    body = {"model": "bert", "input": ["cat " * 500] * 500}
    for _ in range(4):  # of three places
        with pytest.raises(httpx.ReadTimeout):
            serving.client.post("/v1/embeddings", json=body, timeout=0.3)
    made = serving.post("/v1/embeddings", {"model": "bert", "input": TEXTS})
    assert (np.array([it["embedding"] for it in made["data"]], np.float32) == wanted["bert"]).all()


def test_models_say_what_they_make(serving: Serving) -> None:
    cards = {it["id"]: it for it in serving.get("/v1/models")["data"]}
    assert {name: (it["makes_text"], it["n_embd"]) for name, it in cards.items()} == {
        "bert": (False, 128),
        "nomic": (False, 128),
        "ranker": (False, 128),
        "tokens": (False, 128),
        "tiny": (True, None),
        "both": (True, 64),
    }


@pytest.mark.parametrize(
    ("said", "body"),
    [
        ("makes no embeddings", {"model": "tiny", "input": "x"}),
        ("of tokens, not of texts", {"model": "tokens", "input": "x"}),
        ("have 128, and are not shortened", {"dimensions": 64}),
        ("a text is empty", {"input": ""}),
        ("a text is empty", {"input": ["x", ""]}),
        ("give a text, a list of ids, or 1 to 2048", {"input": []}),
        ("no tokens", {"input": [[5], []]}),
        ("has 602 tokens; tiny embeds at most 600", {"input": "cat " * 600}),
        ("320 is not in the vocabulary", {"input": [320]}),
        ("-1 is not in the vocabulary", {"input": [[-1]]}),
        ("1 to 2048", {"input": ["x"] * 2049}),
        ("more than 300000 tokens", {"input": ["cat " * 500] * 700}),
        ("1 to 2048", {"input": [1, "x"]}),
        ("'int8'. Supported values are: 'base64' and 'float'.", {"encoding_format": "int8"}),
    ],
)
def test_what_is_refused(said: str, body: dict[str, Any], serving: Serving) -> None:
    asked = {"model": "bert", "input": "x", **body}
    done = serving.client.post("/v1/embeddings", json=asked)
    assert done.status_code == 400, done.text
    assert said in done.json()["error"]["message"]


def test_an_encoder_asked_for_text(client: openai.OpenAI, serving: Serving) -> None:
    messages: Any = [{"role": "user", "content": "Hello"}]
    with pytest.raises(openai.BadRequestError, match="embeddings and no text") as error:
        client.chat.completions.create(model="bert", messages=messages)
    assert (error.value.code, error.value.param) == ("unsupported", "model")
    with pytest.raises(openai.BadRequestError, match="embeddings and no text"):
        client.completions.create(model="bert", prompt="Hello")
    with pytest.raises(openai.NotFoundError, match="there is no model 'x'"):
        client.embeddings.create(model="x", input="Hello")
    agent = new_agent(serving, model="bert")
    done = serving.client.post(f"/v1/agents/{agent}/messages", json={"input": "Hello"})
    assert done.status_code == 400
    assert "embeddings and no text" in done.json()["error"]["message"]
    made = client.embeddings.create(model="bert", input="Hello")  # it goes on
    assert len(made.data) == 1


# ------------------------------------------------------------------ reranking

DOCUMENTS = ["A cat sleeps.", {"text": "The isthmus is a land bridge."}, "Two seas!"]


def rerank(serving: Serving, **more: Any) -> dict[str, Any]:
    asked = {"model": "bert", "query": "a land bridge", "documents": DOCUMENTS, **more}
    return serving.post("/v1/rerank", asked)


@pytest.mark.parametrize("name", ["bert", "nomic", "both"])
def test_the_order_is_that_of_the_cosines(
    name: str, serving: Serving, files: dict[str, Path]
) -> None:
    texts = ["a land bridge", *(it if isinstance(it, str) else it["text"] for it in DOCUMENTS)]
    with Runtime(device="cpu") as runtime:
        query, *documents = runtime.load_model(files[name]).embed(texts)
        encode = runtime.load_model(files[name]).tokenizer.encode
        n_tokens = sum(len(encode(it, add_special=True)) for it in texts)
    cosines = [float(query @ it) for it in documents]
    told = rerank(serving, model=name)
    assert [it["index"] for it in told["results"]] == [*np.argsort(cosines)[::-1]]
    for it in told["results"]:
        assert it.keys() == {"index", "relevance_score"}
        assert it["relevance_score"] == pytest.approx(cosines[it["index"]], abs=1e-6)
    assert told["usage"] == {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    assert (told["model"], told["object"]) == (name, "list")


def test_a_reranker_scores_the_query_with_each_document(
    serving: Serving, files: dict[str, Path]
) -> None:
    texts = [it if isinstance(it, str) else it["text"] for it in DOCUMENTS]
    with Runtime(device="cpu") as runtime:
        model = runtime.load_model(files["ranker"])
        scores = model.rank("a land bridge", texts)
        n_tokens = sum(len(model.rank_ids("a land bridge", it)) for it in texts)
    told = rerank(serving, model="ranker")
    found = {it["index"]: it["relevance_score"] for it in told["results"]}
    assert found == dict(enumerate(scores))
    assert [*found] == [*np.argsort(scores)[::-1]]
    assert told["usage"]["total_tokens"] == n_tokens
    asked = {"model": "ranker", "input": "x"}
    refused = serving.client.post("/v1/embeddings", json=asked)
    assert refused.status_code == 400
    assert "POST /v1/rerank" in refused.text
    for documents, where in ((["x", ""], "documents[1]"), (["cat " * 700], "documents[0]")):
        body = {"model": "ranker", "query": "x", "documents": documents}
        done = serving.client.post("/v1/rerank", json=body)
        assert done.status_code == 400
        assert done.json()["error"]["param"] == where


def test_as_many_as_are_wanted(serving: Serving) -> None:
    whole = rerank(serving)["results"]
    assert rerank(serving, top_n=2)["results"] == whole[:2]
    assert rerank(serving, top_n=2**31 - 1)["results"] == whole
    shown = rerank(serving, return_documents=True)["results"]
    assert [it.pop("document")["text"] for it in shown] == [
        it if isinstance(it, str) else it["text"] for it in (DOCUMENTS[r["index"]] for r in whole)
    ]
    assert shown == whole
    for path in ("/rerank", "/reranking", "/v1/reranking"):
        body = {"query": "a land bridge", "documents": DOCUMENTS}  # the first model answers
        assert serving.post(path, body)["results"] == whole
    assert rerank(serving, documents=["Two seas!"] * 3)["results"] == [
        {"index": n, "relevance_score": whole_score(whole, 2)} for n in range(3)
    ]


def whole_score(results: list[dict[str, Any]], index: int) -> float:
    return next(it["relevance_score"] for it in results if it["index"] == index)


@pytest.mark.parametrize(
    ("said", "where", "body"),
    [
        ("makes no embeddings", "model", {"model": "tiny"}),
        ("of tokens, not of texts", "model", {"model": "tokens"}),
        ("give 1 to 2047 documents, not 0", "documents", {"documents": []}),
        ("not 100000", "documents", {"documents": ["x"] * 100_000}),
        ("the text is empty", "documents[1]", {"documents": ["x", ""]}),
        ("the text is empty", "documents[0]", {"documents": [{"text": ""}]}),
        ("the text is empty", "query", {"query": ""}),
        ("a string or an object, but got an array", "documents[0]", {"documents": [["x"]]}),
        ("a string or an object, but got an integer", "documents[0]", {"documents": [5]}),
        ("Missing required", "documents[0].text", {"documents": [{"title": "x"}]}),
        ("expected a string, but got an array", "query", {"query": ["x"]}),
        ("a value >= 1, but got 0 instead", "top_n", {"top_n": 0}),
        ("an integer, but got a decimal", "top_n", {"top_n": 1.5}),
        ("integer above maximum value", "top_n", {"top_n": 2**63}),
        ("tiny embeds at most 600", "documents[1]", {"documents": ["x", "cat " * 600]}),
        ("more than 300000 tokens", "documents[597]", {"documents": ["cat " * 500] * 700}),
        ("never cut in silence", "truncation", {"truncation": True}),
        ("give them as `documents`", "texts", {"texts": ["x"]}),
        ("no field nonsense", "nonsense", {"nonsense": 1}),
    ],
)
def test_what_cannot_be_ranked(
    said: str, where: str | None, body: dict[str, Any], serving: Serving
) -> None:
    asked = {"model": "bert", "query": "x", "documents": ["x"], **body}
    done = serving.client.post("/v1/rerank", json=asked)
    assert done.status_code == 400, done.text
    error = done.json()["error"]
    assert said in error["message"]
    assert error["param"] == where
    if where == "model":
        assert error["code"] == "unsupported"


def test_scores_that_are_no_numbers(serving: Serving) -> None:
    for body in (b'{"query": NaN, "documents": ["x"]}', b'{"query": "x", "documents": [NaN]}'):
        assert serving.client.post("/rerank", content=body).status_code == 400


# ------------------------------------------------------------------ Ollama's


@pytest.mark.parametrize("name", ["bert", "nomic:latest"])
def test_ollamas_embeddings(name: str, serving: Serving, wanted: Any) -> None:
    vectors = wanted[name.removesuffix(":latest")]
    told = serving.post("/api/embed", {"model": name, "input": TEXTS, "keep_alive": "5m"})
    assert (np.array(told["embeddings"], np.float32) == vectors).all()
    assert told["model"] == name
    assert told["total_duration"] > 0
    assert told["prompt_eval_count"] > len(TEXTS)
    one = serving.post("/api/embed", {"model": name, "input": TEXTS[1]})
    assert one["embeddings"] == [told["embeddings"][1]]
    older = serving.post("/api/embeddings", {"model": name, "prompt": TEXTS[1]})
    assert older == {"embedding": told["embeddings"][1]}


def test_texts_that_ollama_cuts(serving: Serving) -> None:
    """[CLS] and [SEP] stay around as many tokens as fit."""
    long = {"model": "bert", "input": ["cat " * 700, "cat " * 598]}
    told = serving.post("/api/embed", long)
    assert told["embeddings"][0] == told["embeddings"][1]
    assert told["prompt_eval_count"] == 1200
    done = serving.client.post("/api/embed", json={**long, "truncate": False})
    assert done.status_code == 400
    assert "more than 600 tokens" in done.json()["error"] or "at most 600" in done.json()["error"]


def test_nothing_to_embed_loads_a_model(serving: Serving) -> None:
    for nothing in ("", []):
        told = serving.post("/api/embed", {"model": "bert", "input": nothing})
        assert told["embeddings"] == []
    assert serving.post("/api/embeddings", {"model": "bert"}) == {"embedding": []}


@pytest.mark.parametrize(
    ("said", "body"),
    [
        ("makes no embeddings", {"model": "tiny"}),
        ("input[1]: the text is empty", {"input": ["x", ""]}),
        ("have 128, and are not shortened", {"dimensions": 64}),
        ("up to 2048 texts, not 100000", {"input": ["x"] * 100_000}),
        ("'input[0]': expected a string, but got an array", {"input": [["x"]]}),
        ("'input[0]': expected a string, but got an integer", {"input": [1, 2]}),
        ("Expected a value >= 1, but got 0", {"dimensions": 0}),
        ("not shortened", {"dimensions": 2**63}),
    ],
)
def test_what_ollama_cannot_embed(said: str, body: dict[str, Any], serving: Serving) -> None:
    done = serving.client.post("/api/embed", json={"model": "bert", "input": "x", **body})
    assert done.status_code == 400, done.text
    assert said in done.json()["error"]
    assert serving.client.post("/api/embed", json={"model": "x"}).status_code == 404


def test_models_that_are_loaded(serving: Serving) -> None:
    listed = {it["name"]: it for it in serving.get("/api/tags")["models"]}
    running = {it["name"]: it for it in serving.get("/api/ps")["models"]}
    assert running.keys() == listed.keys() == MODELS.keys()
    assert running["tiny"]["digest"] == listed["tiny"]["digest"]
    assert running["tiny"]["context_length"] == 512
