"""Adapters as models of their own at the OpenAI endpoint."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.conftest import Serving
from tests.tiny_gguf import TinyLora, TinyModel


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("adapters")
    base = TinyModel(tied=False, quantisation="Q8_0", with_tokenizer=True)
    model = base.write(folder / "tiny.gguf")
    poet = TinyLora(base, alpha=32.0).write(folder / "poet.gguf")
    options = ("--model", str(model), "--lora", f"{poet}:0.9", "--lora", f"half={poet}:0.5")
    serving = Serving(folder / "data", *options, "--n-ctx", "1024")
    yield serving
    assert serving.stop() == 0


def ask(serving: Serving, model: str) -> tuple[str, int]:
    """The answer, and how many tokens of the prompt were there."""
    done = serving.post(
        "/v1/completions",
        {"model": model, "prompt": "An isthmus is " * 40, "max_tokens": 12, "temperature": 0},
    )
    cached = done["usage"]["prompt_tokens_details"]["cached_tokens"]
    return done["choices"][0]["text"], cached


def test_each_is_a_model_with_a_cache_of_its_own(serving: Serving) -> None:
    names = [it["id"] for it in serving.get("/v1/models")["data"]]
    assert names == ["tiny", "poet", "half"]
    first = {name: ask(serving, name) for name in names}
    assert [cached for _, cached in first.values()] == [0, 0, 0]
    assert len({text for text, _ in first.values()}) == 3
    for name in names:
        text, cached = ask(serving, name)
        assert text == first[name][0]
        assert cached > 0


def test_a_durable_agent_keeps_its_adapter(serving: Serving) -> None:
    said = serving.post("/v1/agents", {"model": "poet", "guest": "bench", "args": {"n_ctx": "256"}})
    url = f"/v1/agents/{said['id']}"
    assert serving.get(url)["models"] == {"default": "poet"}
    adapters = serving.get(f"{url}/inspect")["models"][0]["adapters"]
    assert [(it["file_name"], it["scale"]) for it in adapters] == [("poet.gguf", 0.9)]
    file = serving.client.get(f"{url}/snapshot").content
    again = serving.client.post("/v1/agents/restore", content=file)
    assert again.status_code < 300, again.text
    assert again.json()["models"] == {"default": "poet"}
