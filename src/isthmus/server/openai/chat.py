"""`/v1/chat/completions`: a conversation goes on."""

from __future__ import annotations

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from isthmus.server.generation.writer import Writer
from isthmus.server.http.endpoint import Endpoint, read_json
from isthmus.server.http.events import EVENTS
from isthmus.server.http.texts import most_nbytes
from isthmus.server.openai.answers import Answers
from isthmus.server.openai.choices import ChatChoice
from isthmus.server.openai.replies import ChatCompletion
from isthmus.server.openai.requests import ChatRequest
from isthmus.server.openai.translate import wanted_of

_decoder = msgspec.json.Decoder(ChatRequest)


class Chat:
    """The route."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def routes(self) -> list[Endpoint]:
        """For Starlette."""
        gives = (ChatCompletion, EVENTS)
        path = "/v1/chat/completions"
        return [Endpoint("POST", path, self.chat, takes=ChatRequest, gives=gives)]

    async def chat(self, http: HttpRequest) -> Response:
        """A conversation goes on."""
        asked = await read_json(http, _decoder, most=most_nbytes(self._writer.n_ctx))
        prepared = await self._writer.prepare(http, asked.model, wanted_of(asked))
        each = [prepared.numbered(index) for index in range(asked.n or 1)]
        return await Answers(asked, each, ChatChoice).respond(http)
