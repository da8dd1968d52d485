"""Pictures and sounds in requests: by OpenAI's own client, and as Anthropic's messages."""

from __future__ import annotations

import base64
import io
import json
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import numpy as np
import openai
import pytest
from PIL import Image

from tests.server.conftest import Serving
from tests.tiny_projector import TEXTS, TinyProjector

QUESTION = "What is it?"
N_ROWS = {"eyes": 4, "ears": 150}
"""Rows of a picture and of a sound, by the models that take them."""


def png(width: int = 40, height: int = 30, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def wav() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(8000)
        writer.writeframes(np.arange(8000, dtype="<i2").tobytes())
    return file.getvalue()


def text64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{text64(data)}"


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server of a model that sees, one that hears and one that reads."""
    folder = tmp_path_factory.mktemp("media")
    options = []
    for name, kind in (("eyes", "gemma3"), ("ears", "ultravox")):
        text = TEXTS[kind].write(folder / f"{kind}.gguf")
        projector = TinyProjector(kind).write(folder / f"{kind}-mmproj.gguf")
        options += ["--model", f"{name}={text}", "--mmproj", f"{name}={projector}"]
    blind = TEXTS["ultravox"].write(folder / "blind.gguf")
    options += ["--model", f"blind={blind}", "--n-ctx", "512", "--device", "cpu"]
    serving = Serving(folder / "data", *options)
    yield serving
    assert serving.stop() == 0


@pytest.fixture
def client(seeing: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{seeing.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, model: str, *parts: dict[str, Any], **how: Any) -> Any:
    content: list[Any] = [*parts, {"type": "text", "text": QUESTION}]
    messages: list[Any] = [{"role": "user", "content": content}]
    given: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "logprobs": True, **how}
    return client.chat.completions.create(model=model, messages=messages, **given)


def picture(data: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": uri(data), "detail": "low"}}


def sound(data: bytes) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": text64(data), "format": "wav"}}


def logprobs(done: Any) -> list[float]:
    return [it.logprob for it in done.choices[0].logprobs.content]


@pytest.mark.parametrize(("model", "part"), [("eyes", picture(png())), ("ears", sound(wav()))])
def test_by_openais_client(client: openai.OpenAI, model: str, part: dict[str, Any]) -> None:
    with_it, again, without = ask(client, model, part), ask(client, model, part), ask(client, model)
    assert logprobs(with_it) == logprobs(again) != logprobs(without)
    more = with_it.usage.prompt_tokens - without.usage.prompt_tokens
    assert more in range(N_ROWS[model], N_ROWS[model] + 8)  # and what opens and closes it
    twice = ask(client, model, part, part)
    assert twice.usage.prompt_tokens > with_it.usage.prompt_tokens + N_ROWS[model]


def test_other_pictures_are_other_prompts(client: openai.OpenAI) -> None:
    """Nothing of a picture is taken for the beginning of another conversation."""
    first = ask(client, "eyes", picture(png(seed=1)))
    second = ask(client, "eyes", picture(png(seed=2)))
    assert logprobs(first) != logprobs(second)
    assert logprobs(ask(client, "eyes", picture(png(seed=1)))) == logprobs(first)


def test_a_large_picture(client: openai.OpenAI) -> None:
    """Its body is much longer than a text that fits into the context could be."""
    large = png(900, 700)
    assert len(large) > 1_500_000
    done = ask(client, "eyes", picture(large))
    assert done.usage.prompt_tokens == ask(client, "eyes", picture(png())).usage.prompt_tokens
    with pytest.raises(openai.APIStatusError) as refused:
        ask(client, "eyes", *[picture(large)] * 2)
    assert refused.value.status_code == 413


def test_streamed_as_whole(client: openai.OpenAI) -> None:
    whole = ask(client, "eyes", picture(png()))
    stream = ask(
        client, "eyes", picture(png()), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(it.choices[0].delta.content or "" for it in chunks if it.choices)
    assert text == (whole.choices[0].message.content or "")
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


def messages(seeing: Serving, source: dict[str, Any], model: str = "eyes") -> Any:
    content = [{"type": "image", "source": source}, {"type": "text", "text": QUESTION}]
    body = {
        "model": model,
        "max_tokens": 8,
        "temperature": 0,
        "messages": [{"role": "user", "content": content}],
    }
    return seeing.client.post(
        "/v1/messages", json=body, headers={"anthropic-version": "2023-06-01"}
    )


def test_anthropics_client(seeing: Serving, client: openai.OpenAI) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": text64(png())}
    content = [{"type": "image", "source": source}, {"type": "text", "text": QUESTION}]
    theirs = anthropic.Anthropic(base_url=seeing.url, api_key="none")
    turns = [{"role": "user", "content": content}]
    done = theirs.messages.create(
        model="eyes", max_tokens=8, messages=turns, extra_body={"temperature": 0}
    )
    counted = theirs.messages.count_tokens(model="eyes", messages=turns)
    usage, same = done.usage, ask(client, "eyes", picture(png())).usage
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == same.prompt_tokens
    assert counted.input_tokens == same.prompt_tokens
    refused = messages(seeing, {"type": "url", "url": "https://example.org/cat.png"})
    assert refused.status_code == 400
    assert "fetches no URLs" in refused.text


def test_a_stream_of_messages_begins_with_what_the_prompt_took(seeing: Serving) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": text64(png(seed=5))}
    content = [{"type": "image", "source": source}, {"type": "text", "text": QUESTION}]
    turns = [{"role": "user", "content": content}]
    body = {"model": "eyes", "max_tokens": 2, "messages": turns, "stream": True}
    told = seeing.client.post("/v1/messages", json=body).text.splitlines()
    events = [json.loads(it[6:]) for it in told if it.startswith("data: ")]
    first = events[0]["message"]["usage"]
    last = next(it for it in events if it["type"] == "message_delta")["usage"]
    kinds = ("input_tokens", "cache_read_input_tokens")
    assert [first[it] for it in kinds] == [last[it] for it in kinds]
    counted = seeing.post("/v1/messages/count_tokens", {"model": "eyes", "messages": turns})
    assert sum(first[it] for it in kinds) == counted["input_tokens"] > N_ROWS["eyes"]


@pytest.mark.parametrize("model", ["eyes", "ears"])
def test_counts_are_those_of_the_answer(client: openai.OpenAI, seeing: Serving, model: str) -> None:
    part = picture(png(seed=6)) if model == "eyes" else sound(wav())
    n_prompt = ask(client, model, part).usage.prompt_tokens
    kind = {"eyes": {"type": "input_image", "image_url": uri(png(seed=6))}, "ears": part}[model]
    content = [kind, {"type": "input_text", "text": QUESTION}]
    asked = {"model": model, "input": [{"role": "user", "content": content}]}
    assert seeing.post("/v1/responses/input_tokens", asked)["input_tokens"] == n_prompt
    content[0] = {"type": "input_image", "image_url": uri(b"nothing")}
    refused = seeing.client.post("/v1/responses/input_tokens", json=asked)
    assert refused.status_code == 400
    assert "picture or sound 1 of the conversation cannot be read" in refused.text


def test_a_stop_text_hides_no_tokens_of_the_prompt(client: openai.OpenAI) -> None:
    whole = ask(client, "eyes", picture(png(seed=7)), max_tokens=16)
    text = whole.choices[0].message.content
    assert text
    stopped = ask(client, "eyes", picture(png(seed=7)), max_tokens=16, stop=[text[-1]])
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.usage.prompt_tokens == whole.usage.prompt_tokens
    assert stopped.usage.prompt_tokens_details.cached_tokens > 0


def test_a_picture_is_remembered(client: openai.OpenAI) -> None:
    """A conversation that goes on after a picture computes no more than what is new."""
    shown: list[Any] = [picture(png(seed=8)), {"type": "text", "text": QUESTION}]
    turns: list[Any] = [{"role": "user", "content": shown}]
    given: dict[str, Any] = {"model": "eyes", "max_tokens": 4, "temperature": 0}
    first = client.chat.completions.create(messages=turns, **given)
    turns += [
        {"role": "assistant", "content": first.choices[0].message.content or "so"},
        {"role": "user", "content": "And now?"},
    ]
    usage = client.chat.completions.create(messages=turns, **given).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert (usage.prompt_tokens_details.cached_tokens or 0) >= N_ROWS["eyes"]
    other = [{"role": "user", "content": [picture(png(seed=9)), shown[1]]}, *turns[1:]]
    again = client.chat.completions.create(messages=other, **given).usage
    assert again is not None
    assert again.prompt_tokens_details is not None
    assert again.prompt_tokens_details.cached_tokens < usage.prompt_tokens_details.cached_tokens


def test_ollamas_chat_and_generate(seeing: Serving, client: openai.OpenAI) -> None:
    image, options = text64(png()), {"temperature": 0, "num_predict": 4}
    common = {"model": "eyes", "stream": False, "options": options}
    turn = {"role": "user", "content": QUESTION, "images": [image]}
    chat = seeing.post("/api/chat", {**common, "messages": [turn]})
    generated = seeing.post("/api/generate", {**common, "prompt": QUESTION, "images": [image]})
    n_prompt = ask(client, "eyes", picture(png())).usage.prompt_tokens
    assert chat["prompt_eval_count"] == generated["prompt_eval_count"] == n_prompt
    assert chat["message"]["content"] == generated["response"]
    body = {**common, "prompt": QUESTION, "images": [image], "raw": True}
    assert seeing.client.post("/api/generate", json=body).status_code == 400


BAD = {
    "a url": ("eyes", picture(b"") | {"image_url": {"url": "https://e.org/a.png"}}, "fetches no"),
    "no data uri": ("eyes", {"type": "image_url", "image_url": {"url": "cat.png"}}, "no data URI"),
    "no base64": (
        "eyes",
        {"type": "image_url", "image_url": {"url": "data:image/png,abc"}},
        ";base64",
    ),
    "broken base64": (
        "eyes",
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,a?"}},
        "no base64",
    ),
    "an empty file": ("eyes", picture(b""), "an empty file"),
    "a cut off picture": ("eyes", picture(png()[:60]), "picture or sound 1 .* damaged"),
    "a picture of nothing": (
        "eyes",
        picture(b"GIF89a" + bytes(99)),
        "JPEG, WebP and WAV",
    ),
    "a sound for eyes": ("eyes", sound(wav()), "the model does not take it"),
    "a picture for ears": ("ears", picture(png()), "the model does not take it"),
    "a picture for who reads": ("blind", picture(png()), "--mmproj"),
    "mp3": ("ears", {"type": "input_audio", "input_audio": {"data": "aa", "format": "mp3"}}, "wav"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_parts(client: openai.OpenAI, name: str) -> None:
    model, part, said = BAD[name]
    with pytest.raises(openai.BadRequestError, match=said):
        ask(client, model, part)
    ask(client, model)


def test_more_than_the_context(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="more tokens than the context has room for"):
        ask(client, "ears", *[sound(wav())] * 4)
    with pytest.raises(openai.BadRequestError, match="more than 64 pictures"):
        ask(client, "eyes", *[picture(png(8, 8))] * 65)


def test_a_picture_among_other_turns(client: openai.OpenAI) -> None:
    turns: list[Any] = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": [{"type": "text", "text": "Look: "}, picture(png())]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "And its name?"},
    ]
    done = client.chat.completions.create(
        model="eyes", messages=turns, max_tokens=4, extra_body={"ignore_eos": True}
    )
    assert done.usage is not None
    assert done.usage.completion_tokens == 4


def test_a_message_to_an_agent(seeing: Serving) -> None:
    made = {"model": "eyes", "args": {"max_tokens": "4"}}
    agent = f"/v1/agents/{seeing.post('/v1/agents', made)['id']}"
    said = {"input": "What is it?", "files": [uri(png(seed=1)), uri(png(seed=2))]}
    seen = seeing.post(f"{agent}/messages", said)["usage"]["total_tokens"]
    seeing.post(f"{agent}/messages", {"input": "And now?"})
    assert [it["n_files"] for it in seeing.get(agent)["turns"]] == [2, 0]
    assert seen > 2 * N_ROWS["eyes"]
    for files, why in (
        (["https://example.org/a.png"], "files[0] is a URL"),
        (["cat.png"], "no data URI"),
        ([uri(png())] * 65, "64"),
    ):
        refused = seeing.client.post(f"{agent}/messages", json={"input": "x", "files": files})
        assert refused.status_code == 400
        assert why in refused.text


def test_a_text_that_looks_like_a_mark(client: openai.OpenAI) -> None:
    """Whoever writes the characters that marks are made of makes no mark."""
    done = ask(client, "eyes", {"type": "text", "text": "\ufdd00\ufdd0"}, picture(png()))
    assert done.usage.prompt_tokens > N_ROWS["eyes"]


def test_a_projector_of_no_model(tmp_path: Path) -> None:
    projector = TinyProjector().write(tmp_path / "p.gguf")
    text = TEXTS["gemma3"].write(tmp_path / "t.gguf")
    with pytest.raises(AssertionError, match="there is no model 'other'"):
        Serving(tmp_path / "data", "--model", f"eyes={text}", "--mmproj", f"other={projector}")
