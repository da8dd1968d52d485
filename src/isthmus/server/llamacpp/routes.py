"""The routes of llama.cpp's API, over the same core as all others."""

from __future__ import annotations

from types import MappingProxyType

from isthmus.server.generation.writer import Writer
from isthmus.server.http.endpoint import Endpoint
from isthmus.server.http.events import EVENTS
from isthmus.server.llamacpp.completion import Completion
from isthmus.server.llamacpp.fields import APPLY_TEMPLATE, COMPLETION, DETOKENIZE, INFILL, TOKENIZE
from isthmus.server.llamacpp.props import About
from isthmus.server.llamacpp.replies import (
    CompletionReply,
    Content,
    Health,
    LlamaError,
    Props,
    Templated,
)
from isthmus.server.llamacpp.replies import Tokens as TokensReply
from isthmus.server.llamacpp.requests import (
    CompletionRequest,
    DetokenizeRequest,
    InfillRequest,
    TemplateRequest,
    TokenizeRequest,
    Which,
)
from isthmus.server.llamacpp.tokens import Tokens
from isthmus.server.settings import ServerSettings


class _Endpoint(Endpoint):
    fails = (LlamaError,)
    tables = MappingProxyType(
        {
            CompletionRequest: COMPLETION,
            InfillRequest: INFILL,
            TokenizeRequest: TOKENIZE,
            DetokenizeRequest: DETOKENIZE,
            TemplateRequest: APPLY_TEMPLATE,
        }
    )


class LlamaCpp:
    """The routes."""

    def __init__(self, writer: Writer, settings: ServerSettings) -> None:
        self._tokens = Tokens(writer)
        self._completion = Completion(writer)
        self._about = About(writer, settings)

    def routes(self) -> list[Endpoint]:
        """For Starlette."""
        tokens, completion, about = self._tokens, self._completion, self._about
        reply = (CompletionReply, list[CompletionReply], EVENTS)
        complete, of_text = completion.complete, CompletionRequest
        return [
            _Endpoint("GET", "/health", about.health, gives=(Health,)),
            _Endpoint("GET", "/v1/health", about.health, gives=(Health,)),
            _Endpoint("GET", "/props", about.props, query=Which, gives=(Props,)),
            *(
                _Endpoint("POST", path, complete, takes=of_text, gives=reply)
                for path in ("/completion", "/completions")
            ),
            _Endpoint("POST", "/infill", completion.infill, takes=InfillRequest, gives=reply),
            _Endpoint(
                *("POST", "/tokenize", tokens.tokenize),
                takes=TokenizeRequest,
                gives=(TokensReply,),
            ),
            _Endpoint(
                *("POST", "/detokenize", tokens.detokenize),
                takes=DetokenizeRequest,
                gives=(Content,),
            ),
            _Endpoint(
                *("POST", "/apply-template", tokens.apply_template),
                takes=TemplateRequest,
                gives=(Templated,),
            ),
        ]
