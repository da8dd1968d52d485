"""`/v1/rerank`: documents in the order of their nearness to a query, as Jina, Cohere and
llama.cpp's server have it.

The nearness is the cosine of two embeddings, each of one text by itself. A reranker proper, which
reads query and document together, would be a model with a head for that, and is not served yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from types import MappingProxyType

import msgspec
import numpy as np
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from isthmus.server.generation.embedders import MOST_TEXTS, Embedders, ids_of
from isthmus.server.http.endpoint import Endpoint
from isthmus.server.http.errors import HttpError
from isthmus.server.http.strict import read_strictly
from isthmus.server.llamacpp.fields import RERANK
from isthmus.server.llamacpp.replies import Ranked, Ranking
from isthmus.server.llamacpp.requests import RerankRequest

_PATHS = ("/v1/rerank", "/v1/reranking", "/rerank", "/reranking")
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
        agents.require_able(name)
        _require_count(len(asked.documents))
        given = [it if isinstance(it, str) else it.text for it in asked.documents]
        documents = [(f"documents[{number}]", it) for number, it in enumerate(given)]
        named = [("query", asked.query), *documents]
        ids = await embedders.texts.of(http, lambda check: ids_of(agents.model, named, check))
        made = await agents.embed(http, ids)
        work = partial(_ranking, asked, name, given, made, sum(map(len, ids)))
        return await asyncio.to_thread(work)


def _require_count(n_documents: int) -> None:
    most = MOST_TEXTS - 1
    if not 1 <= n_documents <= most:
        said = f"give 1 to {most} documents, not {n_documents}"
        raise HttpError(400, said, param="documents")


def _ranking(
    asked: RerankRequest, name: str, given: Sequence[str], made: Sequence[bytes], n_tokens: int
) -> Response:
    """In a thread: there may be millions of numbers."""
    vectors = np.frombuffer(b"".join(made), np.float32).reshape(len(made), -1)
    scores = np.nan_to_num(vectors[1:] @ vectors[0], nan=-1.0, posinf=-1.0, neginf=-1.0)
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
