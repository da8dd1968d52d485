"""`/api/…`: Ollama's API over the same models and agents as all others."""

from __future__ import annotations

import asyncio
import time
from types import MappingProxyType
from typing import TypeVar

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from isthmus.errors import SettingsError
from isthmus.model import Model
from isthmus.server.generation.completer import Completer
from isthmus.server.generation.embedders import Embedders
from isthmus.server.generation.infill import gap_prompt, require_infill
from isthmus.server.generation.prepared import Prepared
from isthmus.server.generation.writer import Writer, chosen
from isthmus.server.http.endpoint import Endpoint
from isthmus.server.http.entry import current
from isthmus.server.http.events import LINES
from isthmus.server.http.strict import Tables, read_strictly
from isthmus.server.http.texts import Check, most_nbytes
from isthmus.server.ollama.answer import OllamaAnswer, as_message, as_response, timestamp
from isthmus.server.ollama.embed import Embed
from isthmus.server.ollama.fields import (
    CHAT,
    CHAT_TABLES,
    EMBED,
    EMBEDDINGS,
    GENERATE,
    GENERATE_TABLES,
    SHOW,
    SHOW_TABLES,
)
from isthmus.server.ollama.models import listed, running, shown
from isthmus.server.ollama.replies import (
    ChatReply,
    EmbeddingsReply,
    EmbedReply,
    GenerateReply,
    LocalModels,
    OllamaError,
    RunningModels,
    Shown,
    Version,
)
from isthmus.server.ollama.requests import (
    ChatRequest,
    Common,
    EmbeddingsRequest,
    EmbedRequest,
    GenerateRequest,
    ShowRequest,
)
from isthmus.server.ollama.translate import chat_wanted, generate_wanted

_VERSION = "0.13.0"
"""The release of Ollama whose API this is; some clients refuse to talk with earlier ones."""
_TAG = ":latest"
_chat = msgspec.json.Decoder(ChatRequest)
_generate = msgspec.json.Decoder(GenerateRequest)
_show = msgspec.json.Decoder(ShowRequest)
_Asked = TypeVar("_Asked", bound=Common)


class _Endpoint(Endpoint):
    fails = (OllamaError,)
    tables = MappingProxyType(
        {
            ChatRequest: CHAT,
            GenerateRequest: GENERATE,
            EmbedRequest: EMBED,
            EmbeddingsRequest: EMBEDDINGS,
            ShowRequest: SHOW,
        }
    )


class Ollama:
    """The routes."""

    def __init__(self, writer: Writer, embedders: Embedders) -> None:
        self._writer = writer
        self._embed = Embed(embedders, self._name)

    def routes(self) -> list[Endpoint]:
        """For Starlette."""
        chat, text = (ChatReply, LINES), (GenerateReply, LINES)
        return [
            _Endpoint("POST", "/api/chat", self.chat, takes=ChatRequest, gives=chat),
            _Endpoint("POST", "/api/generate", self.generate, takes=GenerateRequest, gives=text),
            _Endpoint(
                *("POST", "/api/embed", self._embed.embed), takes=EmbedRequest, gives=(EmbedReply,)
            ),
            _Endpoint(
                *("POST", "/api/embeddings", self._embed.embed_one),
                takes=EmbeddingsRequest,
                gives=(EmbeddingsReply,),
            ),
            _Endpoint("GET", "/api/tags", self.tags, gives=(LocalModels,)),
            _Endpoint("GET", "/api/ps", self.running, gives=(RunningModels,)),
            _Endpoint("POST", "/api/show", self.show, takes=ShowRequest, gives=(Shown,)),
            _Endpoint("GET", "/api/version", self.version, gives=(Version,)),
        ]

    async def chat(self, http: HttpRequest) -> Response:
        """A conversation goes on, told as Ollama tells it."""
        asked, _ = await self._read(http, _chat, CHAT_TABLES)
        if not asked.messages:  # clients ask so whether a model is there
            return JSONResponse(_loaded(asked.model, as_message("", "", [])))
        wanted = chat_wanted(asked)
        prepared = await self._writer.prepare(http, self._name(asked.model), wanted)
        return await OllamaAnswer(prepared, as_message).respond(
            http, stream=asked.stream is not False
        )

    async def generate(self, http: HttpRequest) -> Response:
        """A prompt is answered, told as Ollama tells it."""
        asked, completer = await self._read(http, _generate, GENERATE_TABLES)
        if not asked.prompt and not asked.suffix:
            return JSONResponse(_loaded(asked.model, as_response("", "", [])))
        wanted = generate_wanted(asked)
        name = self._name(asked.model)
        if not asked.raw and not asked.suffix:
            prepared = await self._writer.prepare(http, name, wanted)
        else:
            if asked.system:
                what = "raw prompt" if asked.raw else "prompt with a suffix"
                raise SettingsError(f"system: a {what} has no instructions beside it")
            prepared = await self._raw(http, name, completer, asked)
        return await OllamaAnswer(prepared, as_response).respond(
            http, stream=asked.stream is not False
        )

    async def tags(self, _http: HttpRequest) -> Response:
        """The models that requests may name, as Ollama lists them."""
        models = await asyncio.to_thread(listed, self._writer.completers)
        found: LocalModels = {"models": models}
        return JSONResponse(found)

    async def running(self, _http: HttpRequest) -> Response:
        """The models that are loaded, as Ollama lists them."""
        models = await asyncio.to_thread(running, self._writer.completers)
        found: RunningModels = {"models": models}
        return JSONResponse(found)

    async def show(self, http: HttpRequest) -> Response:
        """A model's file, its chat template and what it is able to do."""
        asked = await read_strictly(http, _show, SHOW_TABLES)
        name = self._name(asked.model or asked.name or "")
        return JSONResponse(shown(name, chosen(self._writer.completers, name)))

    async def version(self, _http: HttpRequest) -> Response:
        """The release of Ollama whose API this is."""
        told: Version = {"version": _VERSION}
        return JSONResponse(told)

    async def _read(
        self, http: HttpRequest, decoder: msgspec.json.Decoder[_Asked], tables: Tables
    ) -> tuple[_Asked, Completer]:
        asked = await read_strictly(http, decoder, tables, most_nbytes(self._writer.n_ctx))
        return asked, self._writer.completer(self._name(asked.model))

    def _name(self, model: str) -> str:
        """The server's name of a model, to which Ollama's clients add a tag."""
        known = self._writer.completers
        return model.removesuffix(_TAG) if model not in known else model

    async def _raw(
        self, http: HttpRequest, name: str, completer: Completer, asked: GenerateRequest
    ) -> Prepared:
        """A prompt without the chat template; control tokens in it are text."""
        model: Model = completer.model
        if asked.suffix:
            require_infill(model, "suffix")

        def ids(check: Check) -> list[int]:
            given = asked.prompt or ""
            if asked.suffix:
                return gap_prompt(completer, given, asked.suffix, check)
            encode = model.tokenizer.encode
            return encode(given, add_special=True, most=completer.n_ctx, check=check)

        prompt = await self._writer.texts.of(http, ids)
        wanted = generate_wanted(asked)
        said = await self._writer.require_grammar(model, wanted.grammar)
        current().warn(said)
        request = self._writer.request(completer, prompt, wanted)
        return Prepared(name, completer, request, warnings=said)


def _loaded(model: str, body: dict[str, object]) -> dict[str, object]:
    """What is answered where nothing is asked: clients load a model so, which is loaded already."""
    head = {"model": model, "created_at": timestamp(time.time())}
    return {**head, **body, "done": True, "done_reason": "load"}
