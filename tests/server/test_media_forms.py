"""Pictures as `/v1/responses` has them, and by URLs of hosts that the server allows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai
import pytest

from isthmus.errors import SettingsError
from isthmus.server.settings import ServerSettings
from tests.server.conftest import Serving
from tests.server.test_media import QUESTION, ask, picture, png, text64, uri, wav
from tests.tiny_projector import TEXTS, TinyProjector

JSON_NBYTES = 64 * 1024


class Pictures(BaseHTTPRequestHandler):
    """Has a picture, one that is too large, an empty one, and a way to elsewhere."""

    def do_GET(self) -> None:
        bodies = {"/a.png": png(seed=1), "/large.png": bytes(JSON_NBYTES + 1), "/empty.png": b""}
        body = bodies.get(self.path)
        self.send_response(302 if self.path == "/away" else 200 if body is not None else 404)
        if self.path == "/away":
            self.send_header("Location", "http://127.0.0.1:1/a.png")
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory, elsewhere: str) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("media")
    options = ["--media-hosts", elsewhere, "--n-ctx", "512", "--device", "cpu"]
    for name, kind in (("eyes", "gemma3"), ("ears", "ultravox")):
        text = TEXTS[kind].write(folder / f"{kind}.gguf")
        projector = TinyProjector(kind).write(folder / f"{kind}-mmproj.gguf")
        options += ["--model", f"{name}={text}", "--mmproj", f"{name}={projector}"]
    config = folder / "server.toml"
    config.write_text(f"json_nbytes = {JSON_NBYTES}\n")
    serving = Serving(folder / "data", *options, "--config", str(config))
    yield serving
    assert serving.stop() == 0


@pytest.fixture
def client(seeing: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{seeing.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def by_url(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def respond(client: openai.OpenAI, *parts: dict[str, Any], model: str = "eyes", **how: Any) -> Any:
    content: list[Any] = [*parts, {"type": "input_text", "text": QUESTION}]
    asked: list[Any] = [{"role": "user", "content": content}]
    given: dict[str, Any] = {"max_output_tokens": 8, "temperature": 0, **how}
    return client.responses.create(model=model, input=asked, **given)


PARTS = {
    "input_image": {"type": "input_image", "detail": "auto", "image_url": uri(png(seed=1))},
    "input_file": {"type": "input_file", "filename": "a.png", "file_data": uri(png(seed=1))},
}


@pytest.mark.parametrize("kind", PARTS)
def test_responses_see(client: openai.OpenAI, kind: str) -> None:
    same = ask(client, "eyes", picture(png(seed=1)))
    done = respond(client, PARTS[kind])
    assert done.output_text == (same.choices[0].message.content or "")
    assert done.usage.input_tokens == same.usage.prompt_tokens


def test_responses_hear(client: openai.OpenAI) -> None:
    sound = {"input_audio": {"data": text64(wav()), "format": "wav"}}
    same = ask(client, "ears", {"type": "input_audio", **sound})
    done = respond(client, {"type": "input_audio", **sound}, model="ears")
    assert done.usage.input_tokens == same.usage.prompt_tokens


def test_a_picture_stays_in_its_conversation(client: openai.OpenAI) -> None:
    first = respond(client, PARTS["input_image"])
    blind = respond(client)
    given: dict[str, Any] = {"model": "eyes", "input": "And now?", "max_output_tokens": 2}
    seen = client.responses.create(previous_response_id=first.id, **given)
    unseen = client.responses.create(previous_response_id=blind.id, **given)
    assert seen.usage is not None
    assert unseen.usage is not None
    assert seen.usage.input_tokens > unseen.usage.input_tokens
    kept = client.responses.input_items.list(first.id).data[0]
    assert kept.to_dict()["content"][0] == PARTS["input_image"]  # type: ignore[index]


BAD = {
    "a file of the API": ({"type": "input_image", "file_id": "file-1"}, "no files are kept"),
    "no file": ({"type": "input_image"}, "there is no file"),
    "a document": (
        {"type": "input_file", "file_data": "data:application/pdf;base64,aa"},
        "send a document's text",
    ),
    "mp3": ({"type": "input_audio", "input_audio": {"data": "", "format": "mp3"}}, "wav"),
    "broken base64": ({"type": "input_image", "image_url": "data:image/png;base64,?"}, "no base64"),
    "of a later kind": ({"type": "input_video"}, "pictures and sounds"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_parts_of_responses(client: openai.OpenAI, name: str) -> None:
    part, said = BAD[name]
    with pytest.raises(openai.BadRequestError, match=said):
        respond(client, part)


def test_what_tools_give_is_text(client: openai.OpenAI) -> None:
    items: list[Any] = [
        {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": [PARTS["input_image"]]},
    ]
    with pytest.raises(openai.BadRequestError, match="what tools give is text"):
        client.responses.create(model="eyes", input=items)


def test_urls_of_allowed_hosts(client: openai.OpenAI, seeing: Serving, elsewhere: str) -> None:
    url = f"http://{elsewhere}/a.png"
    same = ask(client, "eyes", picture(png(seed=1)))
    assert ask(client, "eyes", by_url(url)).choices == same.choices
    done = respond(client, {"type": "input_image", "image_url": url})
    assert done.output_text == (same.choices[0].message.content or "")
    body = {
        "model": "eyes",
        "max_tokens": 8,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image", "source": {"type": "url", "url": url}},
                    {"type": "text", "text": QUESTION},
                ],
            }
        ],
    }
    headers = {"anthropic-version": "2023-06-01"}
    told = seeing.client.post("/v1/messages", json=body, headers=headers)
    assert told.status_code == 200, told.text


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/none.png", "answers 404"),
        ("/large.png", "longer than 64.0 KiB"),
        ("/empty.png", "the file is empty"),
        ("/away", "may not be asked"),
    ],
)
def test_files_that_are_not_to_be_had(
    client: openai.OpenAI, elsewhere: str, path: str, said: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=said) as refused:
        ask(client, "eyes", by_url(f"http://{elsewhere}{path}"))
    assert refused.value.param == "messages[0].content[0].image_url.url"


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/a.png", "https://example.org/a.png"])
def test_other_hosts_are_not_asked(client: openai.OpenAI, url: str) -> None:
    with pytest.raises(openai.BadRequestError, match="may not be asked"):
        ask(client, "eyes", by_url(url))


@pytest.mark.parametrize("host", ["http://example.org/", "a b", "", "example.org:0"])
def test_a_host_that_is_none(host: str) -> None:
    with pytest.raises(SettingsError, match="media_hosts is"):
        ServerSettings(media_hosts=(host,))
