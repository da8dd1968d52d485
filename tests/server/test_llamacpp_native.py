"""Our answers in the shapes of llama.cpp's server against those of llama.cpp's server itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from tests.server.conftest import Serving
from tests.tiny_gguf import TinyModel
from tests.tiny_vocabulary import INFILL

N_CTX = 4096
SCRIPT = Path(__file__).with_name("native_server.py")
TEXTS = (
    *("Hello world", "", " a  b\n\n\tc", "é日本語 \U0001f600", "a\x00b", "word " * 600),
    *("<|im_end|>x<fim_prefix>", "<|im_start", "def f(x):\n    return x\n", "\ufffd\u200b"),
)
MODELS = {
    "repository": TinyModel(with_tokenizer=True, more_special=INFILL),
    "bos": TinyModel(with_tokenizer=True, more_special=INFILL, adds_bos=True),
    "file": TinyModel(with_tokenizer=True, more_special=INFILL[:3], adds_bos=True),
}


class Pair(NamedTuple):
    """Both servers over one model."""

    ours: httpx.Client
    theirs: httpx.Client

    def post(self, path: str, body: Any) -> tuple[Any, Any]:
        """The answers of both."""
        found = [it.post(path, json=body) for it in self]
        assert [it.status_code for it in found] == [200, 200], [it.text for it in found]
        return found[0].json(), found[1].json()


@contextmanager
def native(model: Path) -> Iterator[str]:
    command = [sys.executable, str(SCRIPT), str(model), str(N_CTX)]
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nothing, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.fixture(
    scope="module",
    params=["repository", *(pytest.param(it, marks=pytest.mark.long) for it in ("bos", "file"))],
)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("native")
    model = MODELS[request.param]
    model.n_ctx = N_CTX
    path = model.write(folder / "tiny.gguf")
    options = ("--model", f"tiny={path}", "--n-ctx", str(N_CTX), "--slots", "2")
    with native(path) as url, httpx.Client(base_url=url, timeout=60) as theirs:
        serving = Serving(folder / "data", *options)
        yield Pair(serving.client, theirs)
        assert serving.stop() == 0


@pytest.mark.parametrize("parse_special", [False, True])
@pytest.mark.parametrize("add_special", [False, True])
def test_tokens_and_their_texts(pair: Pair, parse_special: bool, add_special: bool) -> None:
    for text in TEXTS:
        asked = {"content": text, "parse_special": parse_special, "add_special": add_special}
        ours, theirs = pair.post("/tokenize", asked)
        assert ours == theirs
        text_of_ours, text_of_theirs = pair.post("/detokenize", ours)
        assert text_of_ours == text_of_theirs
        ours, theirs = pair.post("/tokenize", {**asked, "with_pieces": True})
        assert ours == theirs


def test_prompts_of_conversations(pair: Pair) -> None:
    turns = [("system", "Be brief."), ("user", "hi"), ("assistant", "yo"), ("user", "é\n")]
    messages = [{"role": role, "content": text} for role, text in turns]
    for n in (1, 2, 4):
        ours, theirs = pair.post("/apply-template", {"messages": messages[:n]})
        assert ours == theirs


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"prompt": "be"},
        {"input_extra": [{"filename": "a.py", "text": "x = 1\n"}, {"text": "y = 2"}]},
        {"prompt": "be", "input_extra": [{"filename": "é", "text": ""}], "input_prefix": ""},
        {"input_suffix": "", "input_prefix": "<fim_suffix><|im_end|>"},
    ],
)
def test_prompts_of_gaps(pair: Pair, more: dict[str, Any]) -> None:
    """Of theirs, as much of `input_extra` is kept as a part of the context holds."""
    asked = {"input_prefix": "def f(", "input_suffix": "):\n  pass", "n_predict": 4}
    ours, theirs = pair.post("/infill", {**asked, "temperature": 0, **more})
    same = ("prompt", "tokens_evaluated", "content", "stop_type", "truncated")
    assert {it: ours[it] for it in same} == {it: theirs[it] for it in same}


@pytest.mark.parametrize(
    "prompt", ["Hello", [10, "Hello", 20], ["a", "b"], [[10, 11], "x"], {"prompt_string": "q"}]
)
def test_texts_that_go_on(pair: Pair, prompt: Any) -> None:
    asked = {"prompt": prompt, "n_predict": 6, "temperature": 0, "n_probs": 2}
    ours, theirs = pair.post("/completion", {**asked, "return_tokens": True})
    assert isinstance(ours, list) == isinstance(theirs, list)
    pairs = zip(ours, theirs, strict=True) if isinstance(ours, list) else [(ours, theirs)]
    told_otherwise = {"timings", "generation_settings", "model", "id_slot", "tokens_cached"}
    told_otherwise.add("tokens_predicted")  # theirs counts a token that ends the text
    for mine, other in pairs:
        assert mine.keys() == other.keys()
        assert mine["timings"].keys() == other["timings"].keys()
        for name in mine.keys() - told_otherwise - {"completion_probabilities"}:
            assert mine[name] == other[name], name
        first, same = mine["completion_probabilities"][0], other["completion_probabilities"][0]
        assert first.keys() == same.keys()
        if first["id"] == same["id"]:  # theirs joins tokens that are parts of one character
            ids = [[it["id"] for it in each["top_logprobs"]] for each in (first, same)]
            assert ids[0] == ids[1]
            assert first["logprob"] == pytest.approx(same["logprob"], abs=1e-4)


def test_what_is_told_of_a_model(pair: Pair) -> None:
    ours, theirs = pair.ours.get("/props").json(), pair.theirs.get("/props").json()
    for name in ("bos_token", "eos_token", "chat_template", "modalities"):
        assert ours[name] == theirs[name]
    settings = [it["default_generation_settings"] for it in (ours, theirs)]
    assert settings[0]["n_ctx"] == settings[1]["n_ctx"] == N_CTX
    params, other = (it["params"] for it in settings)
    shared = params.keys() & other.keys()
    assert {"temperature", "top_k", "top_p", "min_p", "repeat_penalty", "n_predict"} <= shared
    assert {it: params[it] for it in shared} == pytest.approx({it: other[it] for it in shared})
    assert ours["model_path"] == "tiny.gguf"
    assert pair.ours.get("/health").json() == pair.theirs.get("/health").json()
