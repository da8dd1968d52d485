"""`/v1/completions`: text goes on, without a conversation."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from isthmus.abi import GrammarKind
from isthmus.errors import SettingsError
from isthmus.model import Model
from isthmus.server.generation.prepared import Prepared
from isthmus.server.generation.wanted import Wanted
from isthmus.server.generation.writer import Writer
from isthmus.server.http.endpoint import Endpoint, read_json
from isthmus.server.http.events import EVENTS
from isthmus.server.http.texts import Check, most_nbytes
from isthmus.server.openai.answers import Answers
from isthmus.server.openai.choices import TextChoice
from isthmus.server.openai.replies import TextCompletion
from isthmus.server.openai.requests import CompletionRequest
from isthmus.server.openai.translate import sampling_of, stops_of

_MOST_PROMPTS = 32
_MAX_TOKENS = 16
"""Tokens of an answer if the request does not say, as OpenAI has it."""
_decoder = msgspec.json.Decoder(CompletionRequest)


class Completions:
    """The route."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def routes(self) -> list[Endpoint]:
        """For Starlette."""
        gives = (TextCompletion, EVENTS)
        path = "/v1/completions"
        return [Endpoint("POST", path, self.complete, takes=CompletionRequest, gives=gives)]

    async def complete(self, http: HttpRequest) -> Response:
        """Text goes on."""
        writer = self._writer
        asked = await read_json(http, _decoder, most=most_nbytes(writer.n_ctx * _MOST_PROMPTS))
        completer = await writer.completer(http, asked.model)
        completer.require_room()
        if asked.echo:
            raise SettingsError("echo is not supported")
        model, n_ctx = completer.model, completer.n_ctx
        prompts = await writer.texts.of(
            http,
            lambda check: token_lists(model, asked.prompt, "prompt", _MOST_PROMPTS, n_ctx, check),
        )
        wanted = _wanted_of(asked)
        await writer.require_grammar(model, wanted.grammar)
        requests = [writer.request(completer, prompt, wanted) for prompt in prompts]
        prepared = [Prepared(asked.model, completer, request) for request in requests]
        each = [it.numbered(index) for it in prepared for index in range(asked.n or 1)]
        return await Answers(asked, each, TextChoice).respond(http)


def _wanted_of(asked: CompletionRequest) -> Wanted:
    return Wanted(
        messages=(),
        grammar=None if asked.grammar is None else (GrammarKind.GBNF, asked.grammar),
        sampling=sampling_of(asked),
        max_tokens=asked.max_tokens or _MAX_TOKENS,
        stop=stops_of(asked),
        logprobs=asked.logprobs,
    )


def token_lists(
    model: Model, given: str | list[Any], param: str, most: int, n_ctx: int | None, check: Check
) -> list[list[int]]:
    """The ids of each of up to `most` texts: one text, one list of ids, or several of either.

    Control tokens in a text are text. ContextFull for one of more than `n_ctx` tokens.
    """
    if isinstance(given, str) or (given and all(isinstance(it, int) for it in given)):
        given = [given]
    if not 1 <= len(given) <= most or any(isinstance(it, int) for it in given):
        raise SettingsError(f"{param}: give a text, a list of ids, or 1 to {most} of them")
    encode = model.tokenizer.encode
    return [
        encode(it, add_special=True, most=n_ctx, check=check) if isinstance(it, str) else it
        for it in given
    ]
