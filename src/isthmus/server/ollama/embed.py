"""`/api/embed` and `/api/embeddings`, as Ollama has them, by the agents of `/v1/embeddings`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from isthmus.errors import SettingsError
from isthmus.server.generation.embedders import (
    MAX_TEXTS,
    Embedders,
    EmbeddingAgents,
    ids_of,
)
from isthmus.server.http.endpoint import as_json
from isthmus.server.http.strict import read_strictly
from isthmus.server.ollama.fields import EMBED_TABLES, EMBEDDINGS_TABLES
from isthmus.server.ollama.replies import EmbeddingsReply, EmbedReply
from isthmus.server.ollama.requests import EmbeddingsRequest, EmbedRequest

_embed = msgspec.json.Decoder(EmbedRequest)
_embeddings = msgspec.json.Decoder(EmbeddingsRequest)


class Embed:
    """The handlers. `name` gives what the server calls a model."""

    def __init__(self, embedders: Embedders, name: Callable[[str], str]) -> None:
        self._embedders = embedders
        self._name = name

    async def embed(self, http: HttpRequest) -> Response:
        """Texts become vectors of length 1, told as Ollama tells them."""
        began = time.perf_counter_ns()
        asked = await read_strictly(http, _embed, EMBED_TABLES)
        agents = await self._agents(http, asked.model, asked.dimensions)
        given = [asked.input] if isinstance(asked.input, str) else asked.input or []
        made, n_tokens = await self._made(http, agents, given, "input", asked.truncate is not False)

        def answer() -> Response:
            told: EmbedReply = {
                "model": asked.model,
                "embeddings": [_numbers(it) for it in made],
                "total_duration": time.perf_counter_ns() - began,
                "load_duration": 0,
                "prompt_eval_count": n_tokens,
            }
            return as_json(told)

        return await asyncio.to_thread(answer)

    async def embed_one(self, http: HttpRequest) -> Response:
        """A text becomes a vector of length 1, told as earlier releases of Ollama tell it."""
        asked = await read_strictly(http, _embeddings, EMBEDDINGS_TABLES)
        agents = await self._agents(http, asked.model, None)
        made, _ = await self._made(http, agents, [asked.prompt or ""], "prompt", True)
        told: EmbeddingsReply = {"embedding": _numbers(made[0]) if made else []}
        return as_json(told)

    async def _agents(
        self, http: HttpRequest, model: str, dimensions: int | None
    ) -> EmbeddingAgents:
        agents = await self._embedders.chosen(http, self._name(model))
        agents.require_able(model, dimensions)
        return agents

    async def _made(
        self,
        http: HttpRequest,
        agents: EmbeddingAgents,
        given: Sequence[str],
        param: str,
        truncate: bool,
    ) -> tuple[list[bytes], int]:
        """The embeddings of texts and the number of their tokens; none of nothing, by which
        clients have a model loaded."""
        if len(given) > MAX_TEXTS:
            raise SettingsError(f"{param}: give up to {MAX_TEXTS} texts, not {len(given)}")
        if len(given) < 2 and not any(given):
            return [], 0
        named = [(f"{param}[{number}]", it) for number, it in enumerate(given)]
        ids = await self._embedders.texts.of(
            http, lambda check: ids_of(agents.model, named, check, truncate=truncate)
        )
        return await agents.embed(http, ids), sum(map(len, ids))


def _numbers(data: bytes) -> list[float]:
    numbers: list[float] = np.frombuffer(data, np.float32).tolist()
    return numbers
