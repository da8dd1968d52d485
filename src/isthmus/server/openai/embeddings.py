"""`/v1/embeddings`, as OpenAI has it: by sandboxed agents of the guest `embed`."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from isthmus.errors import SettingsError
from isthmus.model import Model
from isthmus.server.generation.embedders import MAX_TEXTS, Embedders, Shown, require_texts
from isthmus.server.generation.media import MediaFiles
from isthmus.server.http.endpoint import Endpoint
from isthmus.server.http.errors import HttpError
from isthmus.server.http.strict import read_strictly
from isthmus.server.http.texts import Check
from isthmus.server.openai.completions import token_lists
from isthmus.server.openai.fields import EMBEDDING_TABLES, EMBEDDINGS
from isthmus.server.openai.replies import EmbeddingList
from isthmus.server.openai.requests import AudioPart, EmbeddingRequest, ImagePart, TextPart

_decoder = msgspec.json.Decoder(EmbeddingRequest)


class _Endpoint(Endpoint):
    tables = MappingProxyType({EmbeddingRequest: EMBEDDINGS})


class Embeddings:
    """The route, over the agents of each model."""

    def __init__(self, embedders: Embedders) -> None:
        self._embedders = embedders

    def routes(self) -> list[Endpoint]:
        """For Starlette."""
        takes, gives = EmbeddingRequest, (EmbeddingList,)
        return [_Endpoint("POST", "/v1/embeddings", self.embed, takes=takes, gives=gives)]

    async def embed(self, http: HttpRequest) -> Response:
        """Texts, pictures and sounds become vectors of length 1."""
        asked = await read_strictly(http, _decoder, EMBEDDING_TABLES)
        agents = await self._embedders.chosen(http, asked.model)
        agents.require_able(asked.model, asked.dimensions)
        texts, shown = await self._embedders.texts.of(
            http, lambda check: _read(agents.model, asked.input, check)
        )
        if shown:
            seen = await agents.embed_shown(http, asked.model, shown)
            n_tokens = sum(it.n_tokens for it in seen)
            return await asyncio.to_thread(_answer, asked, [it.data for it in seen], n_tokens)
        made = await agents.embed(http, texts)
        return await asyncio.to_thread(_answer, asked, made, sum(map(len, texts)))


def _read(
    model: Model, given: str | list[Any], check: Check
) -> tuple[list[list[int]], list[Shown]]:
    """The checked ids of each text; or, if pictures or sounds are among them, what is shown."""
    if _has_parts(given):
        return [], _shown(given)
    return _tokens(model, given, check), []


def _has_parts(given: str | list[Any]) -> bool:
    """Whether something beside texts and ids is to be embedded."""
    flat = (one for it in given for one in (it if isinstance(it, list) else (it,)))
    return not all(isinstance(it, str | int) for it in flat)


def _shown(given: Sequence[Any]) -> list[Shown]:
    """What is to be embedded, each a text with the files that come before it. HttpError 400."""
    if len(given) > MAX_TEXTS:
        raise SettingsError(f"input: give 1 to {MAX_TEXTS} texts and parts")
    found, files, n_before = [], MediaFiles(), 0
    for i, item in enumerate(given):
        parts, texts = item if isinstance(item, list) else [item], []
        for part in parts:
            match part:
                case ImagePart():
                    files.add_uri(part.image_url.url, f"input[{i}].image_url.url")
                case AudioPart():
                    files.add_base64(part.input_audio.data, f"input[{i}].input_audio.data")
                case TextPart():
                    texts.append(part.text)
                case str():
                    texts.append(part)
                case _:
                    raise SettingsError(f"input[{i}]: ids do not go with pictures and sounds")
        found.append(Shown(" ".join(texts), files.files[n_before:]))
        n_before = len(files.files)
    if files.remote:
        where = files.remote[0].where
        said = f"{where}: no URL is fetched for embeddings. Send data:image/png;base64,…"
        raise HttpError(400, said, param=where)
    if any(not it.text and not it.files for it in found):
        raise SettingsError("input: a text is empty")
    return found


def _tokens(model: Model, given: str | list[Any], check: Check) -> list[list[int]]:
    """The checked ids of each text."""
    if "" in (given, *(given if isinstance(given, list) else ())):
        raise SettingsError("input: a text is empty")
    texts = token_lists(model, given, "input", MAX_TEXTS, model.hparams.n_ctx_train, check)
    require_texts(model, texts, "input")
    return texts


def _answer(asked: EmbeddingRequest, made: list[bytes], n_tokens: int) -> Response:
    """In a thread: there may be millions of numbers."""
    as_text = asked.encoding_format == "base64"
    told: EmbeddingList = {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(data).decode() if as_text else _numbers(data),
            }
            for index, data in enumerate(made)
        ],
        "model": asked.model,
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
    }
    return JSONResponse(told)


def _numbers(data: bytes) -> list[float]:
    numbers: list[float] = np.frombuffer(data, np.float32).tolist()
    return numbers
