"""`/tokenize`, `/detokenize`, `/apply-template`: texts, tokens and prompts, without an answer."""

from __future__ import annotations

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from isthmus.model import Tokenizer
from isthmus.server.generation.writer import Writer
from isthmus.server.http.endpoint import as_json, written
from isthmus.server.http.errors import HttpError
from isthmus.server.http.strict import read_strictly, read_wanted
from isthmus.server.http.texts import Check, most_nbytes
from isthmus.server.llamacpp.fields import DETOKENIZE, TEMPLATE_TABLES, TOKENIZE
from isthmus.server.llamacpp.prompts import Reader, require_token
from isthmus.server.llamacpp.replies import Content, Templated
from isthmus.server.llamacpp.requests import (
    DetokenizeRequest,
    TemplateRequest,
    TokenizeRequest,
)
from isthmus.server.openai.translate import wanted_of
from isthmus.units import MIB

_MAX_TOKENS = 300_000
"""Tokens of one request, as many as `/v1/embeddings` takes; more than most contexts have."""
_MAX_NBYTES = 16 * MIB
"""Bytes of a text that tokens become: a token may stand for 64 KiB."""
_MAX_WRITTEN = 16_384
"""Characters of a prompt that the event loop writes."""
_CHECKED = 4096
"""Tokens between two checks."""
_encode = msgspec.json.Encoder().encode
_tokenize = msgspec.json.Decoder(TokenizeRequest)
_detokenize = msgspec.json.Decoder(DetokenizeRequest)
_template = msgspec.json.Decoder(TemplateRequest)


class Tokens:
    """The handlers."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def tokenize(self, http: HttpRequest) -> Response:
        """A text becomes tokens."""
        texts = self._writer.texts
        asked = await read_strictly(http, _tokenize, {"": TOKENIZE})
        tokenizer = await self._tokenizer(http, asked.model)

        def answer(check: Check) -> Response:
            reader = Reader(tokenizer, check, _MAX_TOKENS, bool(asked.parse_special))
            ids = reader.mixed(asked.content, "content", add_special=bool(asked.add_special))
            return as_json({"tokens": _with_pieces(tokenizer, ids) if asked.with_pieces else ids})

        return await texts.of(http, answer)

    async def detokenize(self, http: HttpRequest) -> Response:
        """Tokens become a text."""
        texts = self._writer.texts
        asked = await read_strictly(http, _detokenize, {"": DETOKENIZE})
        tokenizer = await self._tokenizer(http, asked.model)

        def answer(check: Check) -> Response:
            content: Content = {"content": _text(tokenizer, asked.tokens, check)}
            return as_json(content)

        return await texts.of(http, answer)

    async def apply_template(self, http: HttpRequest) -> Response:
        """A conversation becomes the prompt that a model would read."""
        most = most_nbytes(self._writer.n_ctx)
        asked, wanted = await read_wanted(http, _template, TEMPLATE_TABLES, wanted_of, most)
        model = asked.model or self._writer.models.files.first()
        chat = await self._writer.render(http, model, wanted)
        told: Templated = {"prompt": chat.text}
        if chat.warnings:
            told["warnings"] = list(chat.warnings)
        return await written(lambda: told, is_long=len(chat.text) > _MAX_WRITTEN)

    async def _tokenizer(self, http: HttpRequest, model: str | None) -> Tokenizer:
        models = self._writer.models
        return (await models.use(model or models.files.first(), http)).model.tokenizer


def _with_pieces(tokenizer: Tokenizer, ids: list[int]) -> list[msgspec.Raw]:
    """The tokens with their pieces, as JSON: each is written once, however often it occurs."""
    known = {it: msgspec.Raw(_encode({"id": it, "piece": _piece(tokenizer, it)})) for it in {*ids}}
    return [known[it] for it in ids]


def _piece(tokenizer: Tokenizer, token: int) -> str | list[int]:
    data = tokenizer.decode([token], render_special=True)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


def _text(tokenizer: Tokenizer, tokens: list[int], check: Check) -> str:
    """The tokens' text, with U+FFFD for bytes that are no UTF-8. HttpError 400 at a token that is
    in no vocabulary, or that there are too many of."""
    if len(tokens) > _MAX_TOKENS:
        said = f"give up to {_MAX_TOKENS} tokens, not {len(tokens)}"
        raise HttpError(400, said, code="context_length_exceeded", param="tokens")
    data = bytearray()
    for begin in range(0, len(tokens), _CHECKED):
        for at, token in enumerate(tokens[begin : begin + _CHECKED], begin):
            require_token(tokenizer, token, f"tokens[{at}]")
            data += tokenizer.decode([token], render_special=True)
            if len(data) > _MAX_NBYTES:
                said = f"the text has more than {_MAX_NBYTES} bytes"
                raise HttpError(400, said, code="context_length_exceeded", param=f"tokens[{at}]")
        check()
    return data.decode(errors="replace")
