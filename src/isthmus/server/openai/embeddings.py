"""`/v1/embeddings`, as OpenAI has it: by sandboxed agents of the guest `embed`."""

from __future__ import annotations

import asyncio
import base64
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from isthmus.errors import SettingsError
from isthmus.model import Model
from isthmus.server.generation.embedders import MAX_TEXTS, Embedders, require_texts
from isthmus.server.http.endpoint import Endpoint
from isthmus.server.http.strict import read_strictly
from isthmus.server.http.texts import Check
from isthmus.server.openai.completions import token_lists
from isthmus.server.openai.fields import EMBEDDING_TABLES, EMBEDDINGS
from isthmus.server.openai.replies import EmbeddingList
from isthmus.server.openai.requests import EmbeddingRequest

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
        """Texts become vectors of length 1."""
        asked = await read_strictly(http, _decoder, EMBEDDING_TABLES)
        agents = await self._embedders.chosen(http, asked.model)
        agents.require_able(asked.model, asked.dimensions)
        texts = await self._embedders.texts.of(
            http, lambda check: _tokens(agents.model, asked.input, check)
        )
        made = await agents.embed(http, texts)
        return await asyncio.to_thread(_answer, asked, made, sum(map(len, texts)))


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
