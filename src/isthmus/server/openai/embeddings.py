"""`/v1/embeddings`, as OpenAI has it: by sandboxed agents of the guest `embed`."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from isthmus.actor import Actor
from isthmus.errors import SettingsError
from isthmus.model import Model
from isthmus.model.hparams import Pooling
from isthmus.runtime import Runtime
from isthmus.server.generation.answering import Answer
from isthmus.server.http.endpoint import Endpoint, read_json
from isthmus.server.http.entry import current, in_thread
from isthmus.server.http.errors import HttpError
from isthmus.server.http.events import unless_left
from isthmus.server.http.fair import Room
from isthmus.server.http.texts import Check, Texts
from isthmus.server.models.models import Models
from isthmus.server.models.resident import Served
from isthmus.server.openai.completions import token_lists
from isthmus.server.openai.replies import EmbeddingList
from isthmus.server.settings import ServerSettings

_GUEST = "embed"
_MOST_TEXTS = 2048
_MOST_TOKENS = 300_000
"""Texts and tokens of one request: both as OpenAI has them."""


class EmbeddingRequest(Struct, kw_only=True):
    """`/v1/embeddings`."""

    model: str
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None


_decoder = msgspec.json.Decoder(EmbeddingRequest)


class _Agents:
    """The agents that embed for one model: each has one request at a time."""

    def __init__(self, runtime: Runtime, served: Served, settings: ServerSettings) -> None:
        self.model = served.model
        self._runtime = runtime
        self._settings = settings
        self._idle: list[Actor] = []
        self._room = Room(settings.slots, settings.waiting)

    async def embed(self, texts: Sequence[Sequence[int]]) -> list[bytes]:
        """The embedding of each, f32. Raises IsthmusError."""
        async with self._room.place(current().owner):
            actor = await self._take()
            try:
                return [await self._ask(actor, tokens) for tokens in texts]
            finally:
                if actor.state != "closed":
                    self._idle.append(actor)

    async def _take(self) -> Actor:
        """An idle agent: one that a caller left may be busy for another moment."""
        self._idle = [actor for actor in self._idle if actor.state != "closed"]
        free = [actor for actor in self._idle if actor.state != "running"]
        if not free:
            return await in_thread(self._spawn)
        self._idle.remove(free[-1])
        return free[-1]

    async def _ask(self, actor: Actor, tokens: Sequence[int]) -> bytes:
        message = b"".join(token.to_bytes(4, "little") for token in tokens)
        answer = Answer(actor, message, self._settings.deadline_s)
        try:
            async for _ in answer:
                pass
            return answer.reply.data
        finally:
            await answer.close()

    def _spawn(self) -> Actor:
        args = {"input": "ids", "output": "f32"}
        return self._runtime.spawn(_GUEST, models={"default": self.model}, args=args)


class Embeddings:
    """The route, over the agents of each model."""

    def __init__(self, models: Models, settings: ServerSettings, texts: Texts) -> None:
        self._models = models
        self._settings = settings
        self._texts = texts

    def routes(self) -> list[Endpoint]:
        """For Starlette."""
        takes, gives = EmbeddingRequest, (EmbeddingList,)
        return [Endpoint("POST", "/v1/embeddings", self.embed, takes=takes, gives=gives)]

    async def embed(self, http: HttpRequest) -> Response:
        """Texts become vectors of length 1."""
        asked = await read_json(http, _decoder)
        served = await self._models.use(asked.model, http)
        runtime, settings = self._models.runtime, self._settings
        agents = served.find(_Agents) or served.keep(_Agents(runtime, served, settings))
        _require_able(agents.model, asked)
        texts = await self._texts.of(http, lambda check: _tokens(agents.model, asked.input, check))
        for tokens in texts:
            current().count_prompt(tokens)
        made = await unless_left(http, agents.embed(texts))
        return await asyncio.to_thread(_answer, asked, made, sum(map(len, texts)))


def _require_able(model: Model, asked: EmbeddingRequest) -> None:
    """Refuses what this model cannot do, or only worse than it was asked for."""
    pooling, n_embd = model.hparams.pooling, model.hparams.n_embd
    if pooling is None or pooling is Pooling.NONE:
        what = "no embeddings" if pooling is None else "embeddings of tokens, not of texts"
        said = f"the model {asked.model} makes {what}"
        raise HttpError(400, said, code="unsupported", param="model")
    if asked.dimensions not in (None, n_embd):
        said = f"dimensions: the embeddings of {asked.model} have {n_embd}, and are not shortened"
        raise HttpError(400, said, code="unsupported", param="dimensions")


def _tokens(model: Model, given: str | list[Any], check: Check) -> list[list[int]]:
    """The checked ids of each text."""
    if "" in (given, *(given if isinstance(given, list) else ())):
        raise SettingsError("input: a text is empty")
    texts = token_lists(model, given, "input", _MOST_TEXTS, model.hparams.n_ctx_train, check)
    if sum(map(len, texts)) > _MOST_TOKENS:
        raise SettingsError(f"input: all texts together have more than {_MOST_TOKENS} tokens")
    for tokens in texts:
        model.require_embeddable(tokens)
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
