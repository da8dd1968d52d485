"""`/api/…`: Ollama's API over the same models and agents as all others."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from types import MappingProxyType

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from isthmus.errors import SettingsError
from isthmus.model import Model
from isthmus.server.duration import seconds_of
from isthmus.server.generation.completer import Completer
from isthmus.server.generation.embedders import Embedders
from isthmus.server.generation.infill import gap_prompt, require_infill
from isthmus.server.generation.prepared import Prepared
from isthmus.server.generation.wanted import Wanted
from isthmus.server.generation.writer import Writer
from isthmus.server.http.endpoint import Endpoint, written
from isthmus.server.http.entry import current
from isthmus.server.http.errors import HttpError
from isthmus.server.http.events import LINES, line, respond, unless_left
from isthmus.server.http.strict import read_strictly, read_wanted
from isthmus.server.http.texts import Check
from isthmus.server.models.files import MANY
from isthmus.server.models.pulls import Pulling, Pulls
from isthmus.server.models.rights import may_manage, require_manager
from isthmus.server.ollama.answer import OllamaAnswer, as_message, as_response, timestamp
from isthmus.server.ollama.embed import Embed
from isthmus.server.ollama.fields import (
    CHAT,
    CHAT_TABLES,
    EMBED,
    EMBEDDINGS,
    GENERATE,
    GENERATE_TABLES,
    PULL,
    PULL_TABLES,
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
    PullRequest,
    ShowRequest,
)
from isthmus.server.ollama.translate import chat_wanted, generate_wanted

_VERSION = "0.13.0"
"""The release of Ollama whose API this is; some clients refuse to talk with earlier ones."""
_TAG = ":latest"
_chat = msgspec.json.Decoder(ChatRequest)
_generate = msgspec.json.Decoder(GenerateRequest)
_pull = msgspec.json.Decoder(PullRequest)
_show = msgspec.json.Decoder(ShowRequest)


class _Endpoint(Endpoint):
    fails = (OllamaError,)
    tables = MappingProxyType(
        {
            ChatRequest: CHAT,
            GenerateRequest: GENERATE,
            EmbedRequest: EMBED,
            EmbeddingsRequest: EMBEDDINGS,
            PullRequest: PULL,
            ShowRequest: SHOW,
        }
    )


class Ollama:
    """The routes."""

    def __init__(self, writer: Writer, embedders: Embedders, pulls: Pulls) -> None:
        self._writer = writer
        self._models = writer.models
        self._pulls = pulls
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
            _Endpoint("POST", "/api/pull", self.pull, takes=PullRequest, gives=(Pulling, LINES)),
            _Endpoint("POST", "/api/show", self.show, takes=ShowRequest, gives=(Shown,)),
            _Endpoint("GET", "/api/version", self.version, gives=(Version,)),
        ]

    async def chat(self, http: HttpRequest) -> Response:
        """A conversation goes on, told as Ollama tells it."""
        most = self._writer.most_nbytes
        asked, wanted = await read_wanted(http, _chat, CHAT_TABLES, chat_wanted, most)
        if not asked.messages:
            return await self._told_of(http, asked, as_message("", "", []))
        begun = time.perf_counter_ns()
        await self._completer(http, asked)
        load_ns = time.perf_counter_ns() - begun
        prepared = await self._writer.prepare(http, self._name(asked.model), wanted)
        answer = OllamaAnswer(prepared, as_message, load_ns)
        return await answer.respond(http, stream=asked.stream is not False)

    async def generate(self, http: HttpRequest) -> Response:
        """A prompt is answered, told as Ollama tells it.

        Raises HttpError and SettingsError for fields that contradict each other.
        """
        most = self._writer.most_nbytes
        asked, wanted = await read_wanted(http, _generate, GENERATE_TABLES, generate_wanted, most)
        if not asked.prompt and not asked.suffix and not asked.images:
            return await self._told_of(http, asked, as_response("", "", []))
        begun = time.perf_counter_ns()
        completer = await self._completer(http, asked)
        load_ns = time.perf_counter_ns() - begun
        name = self._name(asked.model)
        if asked.images and (asked.raw or asked.suffix):
            raise HttpError(400, "images are for prompts with the chat template", param="images")
        if not asked.raw and not asked.suffix:
            prepared = await self._writer.prepare(http, name, wanted)
        else:
            if asked.system:
                what = "raw prompt" if asked.raw else "prompt with a suffix"
                raise SettingsError(f"system: a {what} has no instructions beside it")
            prepared = await self._raw(http, name, completer, asked, wanted)
        answer = OllamaAnswer(prepared, as_response, load_ns)
        return await answer.respond(http, stream=asked.stream is not False)

    async def tags(self, _http: HttpRequest) -> Response:
        """The models that requests may name, as Ollama lists them."""
        found = await self._models.files.cards()

        def told() -> LocalModels:
            return {"models": listed(found)}

        return await written(told, is_long=len(found) > MANY)

    async def running(self, _http: HttpRequest) -> Response:
        """The models that are in memory, as Ollama lists them."""
        found: RunningModels = {"models": running(self._models.files.all())}
        return JSONResponse(found)

    async def show(self, http: HttpRequest) -> Response:
        """A model's file, its chat template and what it is able to do."""
        asked = await read_strictly(http, _show, SHOW_TABLES)
        name = self._name(asked.model or asked.name or "")
        resident = self._models.files.known(name)
        card = await self._models.files.card(resident)
        templates = await self._models.files.templates(resident)
        return JSONResponse(shown(name, resident, card, templates))

    async def pull(self, http: HttpRequest) -> Response:
        """Fetches a model by a name that `isthmus pull` takes, told as Ollama tells it."""
        asked = await read_strictly(http, _pull, PULL_TABLES)
        require_manager()
        name = (asked.model or asked.name or "").removesuffix(_TAG)
        if asked.stream is not False:
            return await respond(http, self._pulling(name), LINES)
        return JSONResponse(await unless_left(http, self._pulled(name)))

    async def _pulling(self, name: str) -> AsyncIterator[bytes]:
        async for word in self._pulls.follow(name):
            yield line(word)

    async def _pulled(self, name: str) -> Pulling:
        last: Pulling = {}
        async for word in self._pulls.follow(name):
            last = word
        return last

    async def version(self, _http: HttpRequest) -> Response:
        """The release of Ollama whose API this is."""
        told: Version = {"version": _VERSION}
        return JSONResponse(told)

    async def _completer(self, http: HttpRequest, asked: Common) -> Completer:
        """The agents of the model, which stays for as long as the request wants."""
        name, stays_s = self._name(asked.model), _stays_s(asked)
        completer = await self._writer.completer(http, name)
        if stays_s is not None and may_manage():
            self._models.keep_for(name, stays_s)
        return completer

    async def _told_of(self, http: HttpRequest, asked: Common, body: dict[str, object]) -> Response:
        """What is answered if nothing is asked: clients load a model so, or have it leave."""
        leaves = _stays_s(asked) == 0
        if leaves:
            require_manager()
            await self._models.unload(self._name(asked.model))
        else:
            await self._completer(http, asked)
        head = {"model": asked.model, "created_at": timestamp(time.time())}
        done = {"done": True, "done_reason": "unload" if leaves else "load"}
        return JSONResponse({**head, **body, **done})

    def _name(self, model: str) -> str:
        """The server's name of a model, to which Ollama's clients add a tag."""
        return model if self._models.files.find(model) else model.removesuffix(_TAG)

    async def _raw(
        self,
        http: HttpRequest,
        name: str,
        completer: Completer,
        asked: GenerateRequest,
        wanted: Wanted,
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
        said = await self._writer.require_grammar(model, wanted.grammar)
        current().warn(said)
        request = self._writer.request(completer, prompt, wanted)
        return Prepared(name, completer, request, warnings=said)


def _stays_s(asked: Common) -> float | None:
    """Seconds for which the request wants its model to stay; None if it does not say.
    HttpError 400."""
    if asked.keep_alive is None:
        return None
    try:
        return seconds_of(asked.keep_alive)
    except SettingsError as error:
        raise HttpError(400, f"keep_alive: {error}", param="keep_alive") from None
