"""`/v1/chat/completions`: a conversation goes on."""

from __future__ import annotations

from types import MappingProxyType

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from isthmus.server.generation.writer import Writer
from isthmus.server.http.endpoint import Endpoint
from isthmus.server.http.events import EVENTS
from isthmus.server.http.strict import read_wanted
from isthmus.server.openai.answers import Answers, require_places
from isthmus.server.openai.choices import ChatChoice
from isthmus.server.openai.fields import CHAT, CHAT_TABLES
from isthmus.server.openai.replies import ChatCompletion
from isthmus.server.openai.requests import ChatRequest
from isthmus.server.openai.translate import wanted_of

_decoder = msgspec.json.Decoder(ChatRequest)


class _Endpoint(Endpoint):
    tables = MappingProxyType({ChatRequest: CHAT})


class Chat:
    """The route."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def routes(self) -> list[Endpoint]:
        """For Starlette."""
        gives = (ChatCompletion, EVENTS)
        path = "/v1/chat/completions"
        return [_Endpoint("POST", path, self.chat, takes=ChatRequest, gives=gives)]

    async def chat(self, http: HttpRequest) -> Response:
        """A conversation goes on."""
        most = self._writer.most_nbytes
        asked, wanted = await read_wanted(http, _decoder, CHAT_TABLES, wanted_of, most)
        n = asked.n or 1
        require_places(await self._writer.completer(http, asked.model), n, "n")
        prepared = await self._writer.prepare(http, asked.model, wanted)
        each = [prepared.numbered(index) for index in range(n)]
        return await Answers(asked, each, [ChatChoice(it) for it in each]).respond(http)
