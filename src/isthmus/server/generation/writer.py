"""From what is wanted of a model to an answer that can be computed.

A `Writer` has conversations written down by the model's chat template and tokenized, in threads
(`http/texts.py`), and has grammars tried out in a process of their own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial

from starlette.requests import Request as HttpRequest

from isthmus.abi import GrammarKind
from isthmus.errors import Cancelled, ContextFull, GrammarError, SettingsError
from isthmus.model import Model
from isthmus.model.forms import Form, SchemaCheck
from isthmus.model.text import RenderedChat
from isthmus.printable import printable
from isthmus.server.generation.completer import Completer
from isthmus.server.generation.prepared import Prepared, Reading
from isthmus.server.generation.remote import RemoteFiles
from isthmus.server.generation.request import Request, ThoughtBound
from isthmus.server.generation.turns import Messages, without_oldest
from isthmus.server.generation.wanted import Sampling, ToolChoice, Wanted
from isthmus.server.http.entry import current, in_thread
from isthmus.server.http.errors import HttpError
from isthmus.server.http.fair import Threads
from isthmus.server.http.texts import Check, Texts, most_nbytes, require_room
from isthmus.server.models.models import Models
from isthmus.server.settings import ServerSettings

_log = logging.getLogger("isthmus.server")
_TRIALS_AT_A_TIME = 2
"""Grammars that are tried out at the same time: seconds each, in a process of its own."""
_MAX_TOLD = 256
"""Warnings about conversations that the log gets."""
_AS_MANY_AS_FIT = 2**31 - 1
"""`Request.max_tokens` of an answer that only the context bounds."""
_MAX_DIGITS = 10
"""Digits of a token id that are read."""


class Writer:
    """See the module. Owns the threads that wait for grammars. Used by one event loop."""

    def __init__(self, models: Models, settings: ServerSettings, texts: Texts) -> None:
        self.models = models
        """Those that requests may name."""
        self._settings = settings
        self.texts = texts
        """Threads for work that grows with a request's texts."""
        self._told: set[tuple[str, str]] = set()
        """Warnings that the log has, each with its model."""
        self._trials = Threads(_TRIALS_AT_A_TIME, "isthmus-trials", settings.waiting)
        self._remote = RemoteFiles(settings)

    def close(self) -> None:
        """Waits for the threads, which use models."""
        self._remote.close()
        self._trials.close()

    @property
    def n_ctx(self) -> int:
        """Tokens of the longest context of all models."""
        return self.models.files.n_ctx

    @property
    def most_nbytes(self) -> int:
        """Bytes of the longest body of a conversation that fits; if some model takes pictures or
        sounds, as many more as a body of JSON may have."""
        takes_media = any(it.source.mmproj is not None for it in self.models.files.all())
        return most_nbytes(self.n_ctx) + (self._settings.json_nbytes if takes_media else 0)

    async def completer(self, http: HttpRequest, name: str) -> Completer:
        """The agents of a model that makes text, which is loaded if it is not in memory.

        It stays there until the request has ended. The request's body must have been read. Raises
        HttpError 404, 400, and as `Models.use`.
        """
        served = await self.models.use(name, http)
        found = served.find(Completer)
        if found is not None:
            return found
        if not served.model.generates:
            said = f"the model {name} makes embeddings and no text: POST /v1/embeddings"
            raise HttpError(400, said, code="unsupported", param="model")
        make = partial(Completer, self.models.runtime, served, self._settings)
        return served.keep(await in_thread(make))

    async def prepare(self, http: HttpRequest, model: str, wanted: Wanted) -> Prepared:
        """What is wanted of the model that a request names.

        The request's body must have been read. Raises HttpError, IsthmusError: Overloaded if there
        is no room, ContextFull if the conversation does not fit, TemplateError, GrammarError.
        """
        completer = await self.completer(http, model)
        completer.require_room()
        _require_sight(completer, model, wanted)
        wanted = await self._remote.fetched(wanted)
        prepared = await self.texts.of(
            http, lambda check: self._prepared(model, completer, wanted, check)
        )
        said = await self.require_grammar(
            completer.model, prepared.request.grammar, strict=wanted.strict
        )
        warnings = (*prepared.warnings, *said)
        current().warn(warnings)
        return replace(prepared, warnings=warnings)

    async def render(self, http: HttpRequest, model: str, wanted: Wanted) -> RenderedChat:
        """The prompt that a conversation becomes. Raises as `prepare`."""
        completer = await self.completer(http, model)
        _require_sight(completer, model, wanted)
        return await self.texts.of(http, lambda check: self._rendered(completer, wanted, check))

    async def count(self, http: HttpRequest, model: str, wanted: Wanted) -> int:
        """Tokens of the prompt that a conversation becomes, its pictures and sounds included.
        Raises as `prepare`."""
        ids = (await self.render(http, model, wanted)).ids
        if not wanted.media:
            return len(ids)
        wanted = await self._remote.fetched(wanted)
        return await (await self.completer(http, model)).count(ids, wanted.media)

    async def require_grammar(
        self, model: Model, grammar: tuple[GrammarKind, str] | None, *, strict: bool = False
    ) -> tuple[str, ...]:
        """Sentences about what of a JSON schema is not enforced. GrammarError, if there is one and
        it is strict as well; Overloaded. What one owner has tried keeps no other from trying."""
        if grammar is None:
            return ()
        gone = threading.Event()

        def check() -> None:
            if gone.is_set():
                raise Cancelled("the caller left")

        try:
            said = await self._trials.do(
                current().owner, partial(model.grammars.require, *grammar, check=check)
            )
        finally:
            gone.set()
        if strict and said:
            raise GrammarError(f"the JSON schema is strict and cannot be enforced whole: {said[0]}")
        return said

    def request(
        self,
        completer: Completer,
        prompt: Sequence[int],
        wanted: Wanted,
    ) -> Request:
        """A prompt to be answered as is wanted. SettingsError, TokenError, ContextFull."""
        model, max_tokens = completer.model, self._max_tokens(wanted)
        tokens = [it for it in prompt if it >= 0] if wanted.media else prompt
        for token in (min(tokens), max(tokens)) if tokens else ():
            model.require_token(token)
        if not prompt:
            raise SettingsError("the prompt is empty")
        completer.require_fitting(prompt, min(1, max_tokens))
        _require_biases(model, wanted.sampling)
        return Request(
            prompt=prompt,
            max_tokens=max_tokens,
            sampling=wanted.sampling,
            logprobs=wanted.logprobs,
            stop=wanted.stop,
            grammar=wanted.grammar,
            media=wanted.media,
        )

    def _max_tokens(self, wanted: Wanted) -> int:
        """Tokens that an answer may have, if the context has room for them."""
        bounds = (wanted.max_tokens, self._settings.max_tokens)
        return min((it for it in bounds if it is not None), default=_AS_MANY_AS_FIT)

    def _prepared(self, name: str, completer: Completer, wanted: Wanted, check: Check) -> Prepared:
        """In a thread."""
        chat = self._rendered(completer, wanted, check)
        form = completer.model.form(with_tools=bool(wanted.offered))
        controls = completer.model.controls(form)
        ids, in_thought, grammar = chat.ids, chat.opens_thought, wanted.grammar
        schemas = SchemaCheck(frozenset(it.name for it in wanted.tools if it.strict), check=check)
        if wanted.tool_choice is ToolChoice.REQUIRED:
            grammar = form.grammar(
                [it.as_dict() for it in wanted.tools],
                wanted.tool,
                wanted.parallel and wanted.tool is None,
                in_thought=in_thought,
                may_think=True,
                ids=controls,
                check=schemas,
            )
        elif in_thought and grammar is not None and form.thought is not None:
            ids = [*ids, *_tokens(completer.model, form.thought.close_text)]
            in_thought = False  # the grammar is the answer's, and says nothing of thoughts
        request = replace(
            self.request(completer, ids, wanted),
            grammar=grammar,
            thought=_bound(completer.model, form, wanted, in_thought),
            rendered=frozenset(controls.values()),
        )
        self._tell_once(name, chat.warnings)
        warnings = (*chat.warnings, *schemas.warnings)
        return Prepared(name, completer, request, Reading(form, wanted, in_thought), warnings)

    def _tell_once(self, name: str, warnings: Sequence[str]) -> None:
        """Logs what a model's template leaves out, the first time that it does."""
        for said in warnings:
            if len(self._told) < _MAX_TOLD and (name, said) not in self._told:
                self._told.add((name, said))
                _log.warning("%s: %s", name, printable(said))

    def _rendered(self, completer: Completer, wanted: Wanted, check: Check) -> RenderedChat:
        """The conversation as the model reads it, without its oldest turns if they may be left out.

        Then the answer has room for the tokens that it may have, or for a quarter of the context;
        if the last turn alone leaves less, the answer has what it leaves.
        """
        if not wanted.truncate:
            return _render(completer, wanted, wanted.messages, check)
        room = min(self._max_tokens(wanted), completer.n_ctx // 4)

        def render(messages: Messages) -> RenderedChat:
            chat = _render(completer, wanted, messages, check)
            completer.require_fitting(chat.ids, room)
            return chat

        try:
            return without_oldest(wanted.messages, render)
        except ContextFull:
            room = 1
            return without_oldest(wanted.messages, render)


def _render(completer: Completer, wanted: Wanted, messages: Messages, check: Check) -> RenderedChat:
    require_room(len(messages), completer.n_ctx)
    return completer.model.render_chat(
        messages,
        tools=[it.as_dict() for it in wanted.offered] or None,
        variables=wanted.variables,
        now=datetime.now().astimezone(),
        most=completer.n_ctx,
        check=check,
    )


def _require_sight(completer: Completer, name: str, wanted: Wanted) -> None:
    if wanted.media and not completer.model.media_kinds:
        raise SettingsError(
            f"the model {name} takes text alone: it was loaded without a projector (--mmproj)"
        )


def _require_biases(model: Model, sampling: Sampling) -> None:
    for text in sampling.bias:
        if not text.isascii() or not text.isdecimal() or not _is_token(model, text):
            said = f"logit_bias: {text[:20]!r} is no id of {model.n_vocab} tokens"
            raise HttpError(400, said, param="logit_bias")


def _is_token(model: Model, text: str) -> bool:
    return len(text) <= _MAX_DIGITS and int(text) < model.n_vocab


def _tokens(model: Model, text: str) -> list[int]:
    """A text of the model's own form, with its control tokens."""
    return model.tokenizer.encode(text, parse_special=True)


def _bound(model: Model, form: Form, wanted: Wanted, in_thought: bool) -> ThoughtBound | None:
    thought = form.thought
    if wanted.thinking is None or thought is None or wanted.grammar is not None:
        return None
    texts = (thought.begins, thought.ends, thought.close_text)
    opens, closes, close = (_tokens(model, it) for it in texts)
    return ThoughtBound(wanted.thinking, in_thought, opens, closes, close)
