"""From texts to embeddings, by sandboxed agents of the guest `embed` that are kept for the next
request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from starlette.requests import Request as HttpRequest

from isthmus.actor import Actor, Reply
from isthmus.actor.content import with_files
from isthmus.errors import ContextFull, GuestFailed, ModelUnsupported, SettingsError
from isthmus.model import Model
from isthmus.model.shape.hparams import Pooling
from isthmus.runtime import Runtime
from isthmus.server.generation.answering import Answer
from isthmus.server.generation.request import ids_as_bytes
from isthmus.server.http.entry import current, in_thread
from isthmus.server.http.errors import HttpError
from isthmus.server.http.events import unless_left
from isthmus.server.http.fair import Room
from isthmus.server.http.texts import Check, Texts
from isthmus.server.models.models import Models
from isthmus.server.settings import ServerSettings

_GUEST = "embed"
MAX_TEXTS = 2048
MAX_TOKENS = 300_000
"""Texts and tokens of one request: both as OpenAI has them."""


@dataclass(frozen=True)
class Shown:
    """A text with pictures and sounds before it."""

    text: str
    files: tuple[bytes, ...]


class EmbeddingAgents:
    """The agents that embed for one model: each has one request at a time."""

    def __init__(self, runtime: Runtime, model: Model, settings: ServerSettings) -> None:
        self.model = model
        self._runtime = runtime
        self._settings = settings
        self._idle: dict[str, list[Actor]] = {"ids": [], "text": []}
        """By what they read."""
        self._room = Room(settings.slots, settings.waiting)

    def require_able(self, name: str, dimensions: int | None = None) -> None:
        """HttpError 400 for what this model cannot do, or only worse than it was asked for.

        `name` is the model's in the request; `dimensions` those that were asked for.
        """
        pooling, n_embd = self.model.hparams.pooling, self.model.hparams.n_embd
        if self.model.ranks:
            said = f"the model {name} is a reranker: POST /v1/rerank"
            raise HttpError(400, said, code="unsupported", param="model")
        if pooling is None or pooling is Pooling.NONE:
            what = "no embeddings" if pooling is None else "embeddings of tokens, not of texts"
            said = f"the model {name} makes {what}"
            raise HttpError(400, said, code="unsupported", param="model")
        if dimensions not in (None, n_embd):
            said = f"dimensions: the embeddings of {name} have {n_embd}, and are not shortened"
            raise HttpError(400, said, code="unsupported", param="dimensions")

    async def embed(self, http: HttpRequest, texts: Sequence[Sequence[int]]) -> list[bytes]:
        """The embedding of each, f32 of length 1. Raises IsthmusError, ClientDisconnect.

        The request's body must have been read, and the ids checked (`require_texts`).
        """
        for tokens in texts:
            current().count_prompt(tokens)
        return await unless_left(http, self._embed(texts))

    async def embed_shown(
        self, http: HttpRequest, name: str, items: Sequence[Shown]
    ) -> list[Reply]:
        """The embedding of each, as `embed`, and the tokens that it took. SettingsError for a file
        that cannot be read, ModelUnsupported."""
        if not self.model.media_kinds:
            raise ModelUnsupported(
                f"the model {name} takes text alone: it was loaded without a projector (--mmproj)"
            )
        replies = await unless_left(http, self._embed_shown(items))
        current().tokens_in += sum(it.n_tokens for it in replies)
        return replies

    async def _embed_shown(self, items: Sequence[Shown]) -> list[Reply]:
        found = []
        async with self._agent("text") as actor:
            for i, it in enumerate(items):
                try:
                    found.append(await self._ask(actor, with_files(it.text, *it.files)))
                except GuestFailed as error:
                    raise SettingsError(f"input[{i}] cannot be embedded: {error}") from None
        return found

    async def _embed(self, texts: Sequence[Sequence[int]]) -> list[bytes]:
        async with self._agent("ids") as actor:
            return [(await self._ask(actor, ids_as_bytes(it))).data for it in texts]

    @asynccontextmanager
    async def _agent(self, reads: str) -> AsyncIterator[Actor]:
        """An agent that is given back, once there is a place."""
        async with self._room.place(current().owner):
            actor = await self._take(reads)
            try:
                yield actor
            finally:
                if actor.state != "closed":
                    self._idle[reads].append(actor)

    async def _take(self, reads: str) -> Actor:
        """An idle agent: one that a caller left may be busy for another moment."""
        idle = self._idle[reads] = [it for it in self._idle[reads] if it.state != "closed"]
        free = [actor for actor in idle if actor.state != "running"]
        if not free:
            return await in_thread(partial(self._spawn, reads))
        idle.remove(free[-1])
        return free[-1]

    async def _ask(self, actor: Actor, message: bytes) -> Reply:
        answer = Answer(actor, message, self._settings.deadline_s)
        try:
            async for _ in answer:
                pass
            return answer.reply
        finally:
            await answer.close()

    def _spawn(self, reads: str) -> Actor:
        args = {"input": reads, "output": "f32"}
        return self._runtime.spawn(_GUEST, models={"default": self.model}, args=args)


class Embedders:
    """Those of each model in memory, and the threads in which texts become tokens."""

    def __init__(self, models: Models, settings: ServerSettings, texts: Texts) -> None:
        self.models = models
        self.texts = texts
        self._settings = settings

    async def chosen(self, http: HttpRequest, name: str) -> EmbeddingAgents:
        """The one of the model that a request names, which is loaded if it is not in memory.

        The request's body must have been read. Raises HttpError 404, and as `Models.use`.
        """
        served = await self.models.use(name, http)
        runtime, settings = self.models.runtime, self._settings
        return served.find(EmbeddingAgents) or served.keep(
            EmbeddingAgents(runtime, served.model, settings)
        )


def require_texts(model: Model, texts: Sequence[Sequence[int]], param: str) -> None:
    """Raises SettingsError, TokenError, ContextFull for ids that cannot be embedded."""
    if sum(map(len, texts)) > MAX_TOKENS:
        raise SettingsError(f"{param}: all texts together have more than {MAX_TOKENS} tokens")
    for tokens in texts:
        model.require_embeddable(tokens)


def ids_of(
    model: Model, texts: Iterable[tuple[str, str]], check: Check, *, truncate: bool = False
) -> list[list[int]]:
    """The checked ids of texts that come with their places in the request; in a thread.

    HttpError 400 at one that is empty, or too long unless `truncate` cuts it at its end.
    """
    found: list[list[int]] = []
    left = MAX_TOKENS
    for where, text in texts:
        if not text:
            raise HttpError(400, "the text is empty", param=where)
        try:
            ids = (_cut if truncate else _whole)(model, text, check)
            model.require_embeddable(ids)
        except ContextFull as error:
            said, code = str(error), "context_length_exceeded"
            raise HttpError(400, said, code=code, param=where) from None
        left -= len(ids)
        if left < 0:
            said = f"all texts up to this one have more than {MAX_TOKENS} tokens"
            raise HttpError(400, said, param=where)
        found.append(ids)
    return found


def pair_ids(model: Model, query: str, documents: Sequence[str], check: Check) -> list[list[int]]:
    """The checked ids of a query with each document, as a reranker reads them; in a thread.

    HttpError 400 at a text that is empty, or a pair that is too long.
    """
    if not query:
        raise HttpError(400, "the text is empty", param="query")
    found, left = list[list[int]](), MAX_TOKENS
    for number, document in enumerate(documents):
        check()
        where = f"documents[{number}]"
        if not document:
            raise HttpError(400, "the text is empty", param=where)
        try:
            ids = model.rank_ids(query, document)
            model.require_embeddable(ids)
        except ContextFull as error:
            said, code = str(error), "context_length_exceeded"
            raise HttpError(400, said, code=code, param=where) from None
        left -= len(ids)
        if left < 0:
            said = f"the query with all documents up to this one has more than {MAX_TOKENS} tokens"
            raise HttpError(400, said, param=where)
        found.append(ids)
    return found


def _whole(model: Model, text: str, check: Check) -> list[int]:
    most = model.hparams.n_ctx_train
    return model.tokenizer.encode(text, add_special=True, most=most, check=check)


def _cut(model: Model, text: str, check: Check) -> list[int]:
    """The ids of a text, without those at its end that do not fit."""
    head, tail = model.tokenizer.ends
    room = model.hparams.n_ctx_train - len(head) - len(tail)
    return [*head, *model.tokenizer.encode(text, check=check)[:room], *tail]
