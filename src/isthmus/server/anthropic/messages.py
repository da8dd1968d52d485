"""`/v1/messages` and `/v1/messages/count_tokens`, as Anthropic has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TypeVar

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from isthmus.model import Model
from isthmus.server.anthropic.answer import MessageAnswer
from isthmus.server.anthropic.fields import FIELDS, MESSAGE_TABLES
from isthmus.server.anthropic.replies import Message, MessagesErrorReply, TokenCount
from isthmus.server.anthropic.requests import CountRequest, MessagesRequest
from isthmus.server.anthropic.translate import Translated, translate
from isthmus.server.generation.completer import Completer
from isthmus.server.generation.prepared import Prepared
from isthmus.server.generation.wanted import Wanted
from isthmus.server.generation.writer import Writer
from isthmus.server.http.endpoint import Endpoint
from isthmus.server.http.errors import HttpError
from isthmus.server.http.events import EVENTS
from isthmus.server.http.strict import Tables, read_wanted

_Asked = TypeVar("_Asked", bound=CountRequest)
_messages_decoder = msgspec.json.Decoder(MessagesRequest)
_count_decoder = msgspec.json.Decoder(CountRequest)
_COUNTED = {it.name for it in msgspec.structs.fields(CountRequest)}
_COUNT = {name: row for name, row in FIELDS.items() if name in _COUNTED or row.is_refused}
_COUNT_TABLES = {**MESSAGE_TABLES, "": _COUNT}


class _Endpoint(Endpoint):
    fails = (MessagesErrorReply,)
    tables = MappingProxyType({MessagesRequest: FIELDS, CountRequest: _COUNT})


class Messages:
    """The routes, over the server's writer."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def routes(self) -> list[Endpoint]:
        """For Starlette."""
        create, count = "/v1/messages", "/v1/messages/count_tokens"
        gives = (Message, EVENTS)
        return [
            _Endpoint("POST", create, self.create, takes=MessagesRequest, gives=gives),
            _Endpoint("POST", count, self.count, takes=CountRequest, gives=(TokenCount,)),
        ]

    async def create(self, http: HttpRequest) -> Response:
        """A conversation goes on."""
        asked, told = await self._read(http, _messages_decoder, MESSAGE_TABLES)
        prepared = await self._writer.prepare(http, asked.model, told.wanted)
        if told.prefill:
            prepared = await self._continued(http, prepared, told.prefill)
        answer = MessageAnswer(prepared, hides_thoughts=told.hides_thoughts)
        return await answer.respond(http, stream=bool(asked.stream))

    async def count(self, http: HttpRequest) -> Response:
        """Tokens of a conversation that fits, without an answer to it."""
        asked, told = await self._read(http, _count_decoder, _COUNT_TABLES)
        n_tokens = await self._writer.count(http, asked.model, told.wanted)
        if told.prefill:
            completer = await self._writer.completer(http, asked.model)
            n_tokens += len(await self._ids(http, completer, told.prefill, completer.n_ctx))
        counted: TokenCount = {"input_tokens": n_tokens}
        return JSONResponse(counted)

    async def _read(
        self, http: HttpRequest, decoder: msgspec.json.Decoder[_Asked], tables: Tables
    ) -> tuple[_Asked, Translated]:
        """The request, and what it wants. HttpError 400, SettingsError."""
        most = self._writer.most_nbytes
        asked, told = await read_wanted(http, decoder, tables, translate, most)
        model = (await self._writer.completer(http, asked.model)).model
        if told.wanted.variables:
            wanted = await self._writer.texts.of(
                http, lambda _: _with_known_variables(told.wanted, model)
            )
            told = replace(told, wanted=wanted)
        return asked, told

    async def _continued(self, http: HttpRequest, prepared: Prepared, text: str) -> Prepared:
        """An answer that goes on from a text, which stands where its first tokens would.

        HttpError 400 if the model begins with a thought, ContextFull.
        """
        if prepared.reading is not None and prepared.reading.in_thought:
            said = "this model thinks before it answers: no answer can be begun for it"
            raise HttpError(400, said, code="unsupported", param="messages")
        completer, request = prepared.completer, prepared.request
        most = completer.n_ctx - len(request.prompt)
        prompt = [*request.prompt, *await self._ids(http, completer, text, most)]
        completer.require_fitting(prompt)
        return replace(prepared, request=replace(request, prompt=prompt))

    async def _ids(
        self, http: HttpRequest, completer: Completer, text: str, most: int
    ) -> Sequence[int]:
        """Token ids of the beginning of an answer; control tokens in it are text. ContextFull."""
        encode = completer.model.tokenizer.encode
        return await self._writer.texts.of(http, lambda check: encode(text, most=most, check=check))


def _with_known_variables(wanted: Wanted, model: Model) -> Wanted:
    """What is wanted, without variables that the model's template does not read."""
    template = model.chat_templates.chosen(with_tools=bool(wanted.offered)).template
    known = template.vocabulary.names
    variables = {name: it for name, it in wanted.variables.items() if name in known}
    return replace(wanted, variables=variables)
