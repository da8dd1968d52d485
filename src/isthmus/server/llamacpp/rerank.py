"""`/v1/rerank`: documents in the order of their nearness to a query, as Jina, Cohere and
llama.cpp's server have it.

A reranker reads the query with each document, and its score tells how well they go together. With a
model that makes embeddings, the nearness is the cosine of two of them, each of one text by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from types import MappingProxyType

import msgspec
import numpy as np
import numpy.typing as npt
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from isthmus.server.generation.embedders import (
    MAX_TEXTS,
    Embedders,
    EmbeddingAgents,
    ids_of,
    pair_ids,
)
from isthmus.server.http.endpoint import Endpoint
from isthmus.server.http.errors import HttpError
from isthmus.server.http.strict import read_strictly
from isthmus.server.http.texts import Check
from isthmus.server.llamacpp.fields import RERANK
from isthmus.server.llamacpp.replies import Ranked, Ranking
from isthmus.server.llamacpp.requests import RerankRequest

_PATHS = ("/v1/rerank", "/v1/reranking", "/rerank", "/reranking")
Scores = npt.NDArray[np.float32]
_decoder = msgspec.json.Decoder(RerankRequest)


class _Endpoint(Endpoint):
    tables = MappingProxyType({RerankRequest: RERANK})


class Reranking:
    """The route, over the agents that embed."""

    def __init__(self, embedders: Embedders) -> None:
        self._embedders = embedders

    def routes(self) -> list[Endpoint]:
        """For Starlette."""
        takes, gives = RerankRequest, (Ranking,)
        return [_Endpoint("POST", it, self.rerank, takes=takes, gives=gives) for it in _PATHS]

    async def rerank(self, http: HttpRequest) -> Response:
        """Documents are put in the order of their nearness to a query."""
        embedders = self._embedders
        asked = await read_strictly(http, _decoder, {"": RERANK})
        name = asked.model or embedders.models.files.first()
        agents = await embedders.chosen(http, name)
        if not agents.model.ranks:
            agents.require_able(name)
        _require_count(len(asked.documents))
        given = [it if isinstance(it, str) else it.text for it in asked.documents]
        if agents.model.ranks:
            return await self._scored(http, asked, agents, given)
        documents = [(f"documents[{number}]", it) for number, it in enumerate(given)]
        named = [("query", asked.query), *documents]
        ids = await embedders.texts.of(http, lambda check: ids_of(agents.model, named, check))
        made = await agents.embed(http, ids)
        work = partial(_cosines, made)
        scores = await asyncio.to_thread(work)
        return _ranking(asked, name, given, scores, sum(map(len, ids)))

    async def _scored(
        self,
        http: HttpRequest,
        asked: RerankRequest,
        agents: EmbeddingAgents,
        given: Sequence[str],
    ) -> Response:
        """The answer of a reranker."""
        name = asked.model or self._embedders.models.files.first()

        def tokenize(check: Check) -> list[list[int]]:
            return pair_ids(agents.model, asked.query, given, check)

        ids = await self._embedders.texts.of(http, tokenize)
        made = await agents.embed(http, ids)
        scores = np.array([np.frombuffer(it, np.float32)[0] for it in made])
        return _ranking(asked, name, given, np.nan_to_num(scores), sum(map(len, ids)))


def _require_count(n_documents: int) -> None:
    most = MAX_TEXTS - 1
    if not 1 <= n_documents <= most:
        said = f"give 1 to {most} documents, not {n_documents}"
        raise HttpError(400, said, param="documents")


def _cosines(made: Sequence[bytes]) -> Scores:
    """In a thread: there may be millions of numbers."""
    vectors = np.frombuffer(b"".join(made), np.float32).reshape(len(made), -1)
    scores: Scores = np.nan_to_num(vectors[1:] @ vectors[0], nan=-1.0, posinf=-1.0, neginf=-1.0)
    return scores


def _ranking(
    asked: RerankRequest, name: str, given: Sequence[str], scores: Scores, n_tokens: int
) -> Response:
    best = np.argsort(-scores, kind="stable")[: asked.top_n]
    results = [_ranked(asked, int(it), float(scores[it]), given) for it in best]
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    told: Ranking = {"object": "list", "model": name, "results": results, "usage": usage}  # type: ignore[typeddict-item]
    return JSONResponse(told)


def _ranked(asked: RerankRequest, index: int, score: float, given: Sequence[str]) -> Ranked:
    told: Ranked = {"index": index, "relevance_score": score}
    if asked.return_documents:
        told["document"] = {"text": given[index]}
    return told
