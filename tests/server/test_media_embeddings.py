"""`/v1/embeddings` of pictures and sounds, and `isthmus embed --image`."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isthmus.cli import main
from tests.server.conftest import Serving
from tests.server.test_media import picture, png, sound, uri, wav
from tests.tiny_projector import TEXTS, TinyProjector

TEXT = {"type": "text", "text": "A cat."}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("seeing")
    for kind in ("qwen3vl", "ultravox"):
        recipe = replace(TEXTS[kind], overrides={"pooling_type": 3})
        recipe.write(made / f"{kind}.gguf")
        TinyProjector(kind).write(made / f"{kind}-mmproj.gguf")
    return made


@pytest.fixture(scope="module")
def seeing(folder: Path) -> Iterator[Serving]:
    options = ["--graph", "adopted", "--n-ctx", "512", "--device", "cpu"]
    for name, kind in (("eyes", "qwen3vl"), ("ears", "ultravox")):
        options += ["--model", f"{name}={folder}/{kind}.gguf"]
        options += ["--mmproj", f"{name}={folder}/{kind}-mmproj.gguf"]
    options += ["--model", f"blind={folder}/qwen3vl.gguf"]
    serving = Serving(folder / "data", *options)
    yield serving
    assert serving.stop() == 0


def vectors(serving: Serving, given: Any, model: str = "eyes") -> list[list[float]]:
    told = serving.post("/v1/embeddings", {"model": model, "input": given})
    assert [it["index"] for it in told["data"]] == list(range(len(told["data"])))
    assert told["usage"]["prompt_tokens"] == told["usage"]["total_tokens"] > 0
    found = [it["embedding"] for it in told["data"]]
    assert np.allclose(np.linalg.norm(found, axis=1), 1)
    return found


def test_parts_are_embedded(seeing: Serving) -> None:
    one, other = picture(png(seed=1)), picture(png(seed=2))
    found = vectors(seeing, [one, other, TEXT, "A cat.", [one, TEXT], [one, other]])
    assert found[2] == found[3] == vectors(seeing, "A cat.")[0]
    assert len({tuple(it) for it in found}) == len(found) - 1
    assert vectors(seeing, [one]) == [found[0]]
    assert vectors(seeing, [[one]]) == [found[0]]
    (heard,) = vectors(seeing, [sound(wav())], "ears")
    assert heard != vectors(seeing, "A cat.", "ears")[0]
    body = {"model": "eyes", "input": [one], "encoding_format": "base64"}
    data = seeing.post("/v1/embeddings", body)["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(data), np.float32).tolist() == found[0]


def test_tokens_of_a_picture_count(seeing: Serving) -> None:
    def n_tokens(given: Any) -> int:
        told = seeing.post("/v1/embeddings", {"model": "eyes", "input": given})
        return int(told["usage"]["prompt_tokens"])

    assert n_tokens([picture(png()), TEXT]) == n_tokens([picture(png())]) + n_tokens("A cat.")
    assert n_tokens([picture(png(200, 200))]) > n_tokens([picture(png(40, 40))]) > 3


BAD = {
    "no file": ([picture(b"nothing")], "input[0] cannot be embedded"),
    "damaged": ([TEXT, picture(png()[:60])], "input[1] cannot be embedded"),
    "a sound for eyes": ([sound(wav())], "takes no sounds"),
    "a url": ([{"type": "image_url", "image_url": {"url": "http://e.org/a.png"}}], "no URL is"),
    "no data uri": ([{"type": "image_url", "image_url": {"url": "a.png"}}], "no data URI"),
    "ids": ([[1, 2, picture(png())]], "ids do not go with"),
    "nothing": ([picture(png()), ""], "a text is empty"),
    "no part": ([{"type": "video", "video": "a"}], "video"),
    "more than at once": ([[picture(png())] * 5], "media"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_parts(seeing: Serving, name: str) -> None:
    given, said = BAD[name]
    refused = seeing.client.post("/v1/embeddings", json={"model": "eyes", "input": given})
    assert refused.status_code in (400, 422), refused.text
    assert said in refused.text
    assert len(vectors(seeing, [picture(png())])) == 1


def test_a_model_that_reads(seeing: Serving) -> None:
    body = {"model": "blind", "input": [picture(png())]}
    refused = seeing.client.post("/v1/embeddings", json=body)
    assert refused.status_code == 400
    assert "--mmproj" in refused.text


def test_by_the_command_line(
    seeing: Serving, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(png(seed=1))
    model = ["--model", f"{folder}/qwen3vl.gguf", "--mmproj", f"{folder}/qwen3vl-mmproj.gguf"]
    how = [*model, "--graph", "adopted", "--device", "cpu"]
    assert main(["embed", *how, "--json", "--image", str(file), "A cat."]) == 0
    shown, text = map(json.loads, capsys.readouterr().out.splitlines())
    assert (shown["file"], text["text"]) == (str(file), "A cat.")
    expected = vectors(seeing, [{"type": "image_url", "image_url": {"url": uri(png(seed=1))}}])
    assert np.allclose(shown["embedding"], expected[0], atol=1e-6)
    assert main(["embed", *how, "--image", str(tmp_path / "none.png")]) == 2
    assert "cannot read the file" in capsys.readouterr().err
