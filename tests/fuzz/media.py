"""Pictures and sounds in requests, against a server of models that see and hear."""

from __future__ import annotations

import base64
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from tests.e2e.test_decoders import SEEDS as PICTURES
from tests.e2e.test_decoders import mutated
from tests.fuzz import http
from tests.fuzz.http import request
from tests.server.test_media import wav
from tests.tiny_projector import TEXTS, TinyProjector

SEEDS = {**PICTURES, "a second of wav": wav()}
_MODELS = {"eyes": "gemma3", "ears": "ultravox"}
_URIS = (
    *("", "data:", "data:,", "data:image/png;base64,", "data:;base64,AAAA", "data:image/png,AAAA"),
    *("data:image/png;base64,=", "data:image/png;base64,\ud800", "data:image/png;BASE64,AAAA"),
    *("file:///etc/passwd", "/etc/passwd", "http://169.254.169.254/", "https://[::1]:1/a.png"),
    *("http://", "blob:x", "data:image/png;base64," + "A" * 300_000, "javascript:1", "\0"),
)
_PATHS = (
    *("/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens", "/v1/responses"),
    *("/v1/responses/input_tokens", "/api/chat", "/api/generate", "/v1/embeddings"),
)


def _png(width: int, height: int) -> bytes:
    """The beginning of a picture that says to be this large."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + bytes(4)


def _text(file: bytes) -> str:
    return base64.b64encode(file).decode()


def _part(path: str, file: bytes | str) -> dict[str, Any]:
    """A part of a message in the form of that path's API; a text is a URI as it stands."""
    uri = file if isinstance(file, str) else f"data:image/png;base64,{_text(file)}"
    is_sound = isinstance(file, bytes) and file[:4] == b"RIFF" and file[8:12] == b"WAVE"
    if is_sound and "messages" not in path:
        data = file if isinstance(file, str) else _text(file)
        return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    if "messages" in path:
        if isinstance(file, str):
            return {"type": "image", "source": {"type": "url", "url": file}}
        source = {"type": "base64", "media_type": "image/png", "data": _text(file)}
        return {"type": "image", "source": source}
    if "responses" in path:
        return {"type": "input_image", "image_url": uri}
    return {"type": "image_url", "image_url": {"url": uri}}


def body(path: str, model: str, *files: bytes | str) -> bytes:
    """A request's body: a question about files."""
    said: dict[str, Any] = {"model": model}
    content = [*(_part(path, it) for it in files), {"type": "text", "text": "What is it?"}]
    images = [it if isinstance(it, str) else _text(it) for it in files]
    match path:
        case "/v1/responses" | "/v1/responses/input_tokens":
            content[-1]["type"] = "input_text"
            said["input"] = [{"role": "user", "content": content}]
        case "/api/chat":
            said["messages"] = [{"role": "user", "content": "What is it?", "images": images}]
            said["options"] = {"num_predict": 1}
        case "/api/generate":
            said |= {"prompt": "What is it?", "images": images, "options": {"num_predict": 1}}
        case "/v1/embeddings":
            said["input"] = [content, *content]
        case _:
            said["messages"] = [{"role": "user", "content": content}]
    if path in ("/v1/chat/completions", "/v1/messages"):
        said["max_tokens"] = 1
    return json.dumps(said).encode()


def asked(path: str, model: str, *files: bytes | str) -> Callable[[], bytes]:
    """A request about files."""
    return lambda: request(path, body(path, model, *files))


class Fuzz(http.Fuzz):
    """Sends a question about files. After it, a question without any has the answer that it had."""

    corpus: ClassVar = {
        "2^31-pixels": asked(_PATHS[0], "eyes", _png(2**31 - 1, 1)),
        "2^62-pixels": asked(_PATHS[0], "eyes", _png(2**31 - 1, 2**31 - 1)),
        "no-pixels": asked(_PATHS[1], "eyes", _png(0, 0)),
        "truncated": asked(_PATHS[3], "eyes", SEEDS["png"][:40]),
        "65-files": asked(_PATHS[0], "eyes", *[SEEDS["png"]] * 65),
        "more-than-the-context": asked(_PATHS[0], "ears", *[wav()] * 60),
        "a-sound-for-eyes": asked(_PATHS[0], "eyes", wav()),
        "a-picture-for-ears": asked(_PATHS[2], "ears", SEEDS["png"]),
        "a-file-of-the-server": asked(_PATHS[0], "eyes", "file:///etc/passwd"),
        "counted": asked(_PATHS[4], "eyes", b"nothing"),
    }
    n_short = 25

    def __init__(self, folder: Path) -> None:
        self.answers: dict[str, Any] = {}
        """What the models say without files, by model."""
        super().__init__(folder)

    def options(self) -> list[str]:
        found = ["--n-ctx", "512", "--device", "cpu"]
        for name, kind in _MODELS.items():
            text, projector = self.folder / f"{name}.gguf", self.folder / f"{name}-mmproj.gguf"
            if not text.exists():
                TEXTS[kind].write(text)
                TinyProjector(kind).write(projector)
            found += ["--model", f"{name}={text}", "--mmproj", f"{name}={projector}"]
        return found

    def make(self, rng: random.Random) -> bytes:
        path, model = rng.choice(_PATHS), rng.choice([*_MODELS, "eyes"])
        files = [self._file(rng) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
        data = json.loads(body(path, model, *files))
        if rng.random() < 0.2:
            http._change(data, rng)
        return request(path, json.dumps(data).encode())

    def run(self, data: bytes) -> str:
        outcome = super().run(data)
        said = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
        for model in _MODELS:
            url, how = "/v1/chat/completions", {"model": model, "temperature": 0, "logprobs": True}
            answer = self.serving.client.post(url, json={**said, **how}).json()["choices"]
            assert self.answers.setdefault(model, answer) == answer, "the answer is another one"
        return outcome

    def _file(self, rng: random.Random) -> bytes | str:
        match rng.randrange(8):
            case 0:
                return rng.choice(_URIS)
            case 1:
                sides = (0, 1, 255, 2**15, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
                return _png(rng.choice(sides), rng.choice(sides))
            case 2:
                file = SEEDS[rng.choice(list(SEEDS))]
                return file[: rng.randrange(len(file) + 1)]
            case 3:
                return rng.randbytes(rng.randrange(200))
            case 4:
                return SEEDS[rng.choice(list(SEEDS))]
            case _:
                return mutated(rng, SEEDS[rng.choice(list(SEEDS))])
