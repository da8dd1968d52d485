"""Text and embeddings of a context of wasi-nn, computed as for any other guest.

A token that was drawn is decoded when the next one is asked for, so the last one never is.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Callable
from functools import partial

from isthmus.abi import GrammarKind, TokenFlag
from isthmus.actor.ask import Aside, Decode, Prompt
from isthmus.actor.host_api.context import Context, require_logits
from isthmus.actor.nn.fault import NnFault, refused
from isthmus.actor.nn.memory import NnMemory
from isthmus.actor.nn.state import NnContext
from isthmus.errors import ContextFull, GrammarError, SettingsError
from isthmus.model import Grammar, Model, SamplerSettings, Session, sample
from isthmus.model.shape.hparams import Pooling
from isthmus.model.step import Step
from isthmus.wasm.wasi_nn import NnErrno

MARGIN = 4
"""Tokens of a context that a prompt leaves free."""
_F32_NBYTES = 4
_MAX_SORTED = 16 * 1024
"""Logits that are sorted in line, in about a millisecond."""


class Generation:
    """See the module. One for each actor."""

    def __init__(
        self, context: Context, memory: NnMemory, write: Callable[[int, bytes], None]
    ) -> None:
        """`write` takes bytes for standard output, 1."""
        self._c = context
        self._memory = memory
        self._write = write

    async def compute(self, opened: NnContext) -> NnErrno:
        """Answers the input, up to an end token or another end."""
        settings = opened.settings
        if settings.embedding:
            return await self._embed(opened)
        await self._begin(opened)
        ending = settings.reverse_prompt.encode()
        while not 0 <= settings.n_predict <= len(opened.output_ids):
            ended = await self._next(opened)
            if settings.stream_stdout:
                self._write(1, opened.last)
            if ended or (ending and _ends(opened, ending)):
                break
        if settings.enable_log:
            said = f"{len(opened.prompt or ())} tokens in, {len(opened.output_ids)} tokens out"
            self._c.note(said)
        return NnErrno.SUCCESS

    async def compute_single(self, opened: NnContext) -> NnErrno:
        """Draws one token; the first one after an input, or an end, begins anew."""
        if opened.settings.embedding:
            raise refused("a context that makes embeddings gives no tokens")
        if not opened.is_streaming:
            await self._begin(opened)
            opened.is_streaming = True
        if await self._next(opened):
            opened.is_streaming = False
            return NnErrno.END_OF_SEQUENCE
        return NnErrno.SUCCESS

    async def _begin(self, opened: NnContext) -> None:
        """Forgets the session and the output, and computes the input."""
        c, prompt = self._c, _prompt_of(opened)
        session = c.session(opened.session)
        n_ctx = opened.settings.context_size(Model.of(session).hparams.n_ctx_train)
        if len(prompt) > n_ctx - MARGIN:
            raise NnFault(
                NnErrno.PROMPT_TOO_LONG,
                f"the prompt has {len(prompt)} tokens, and a context of {n_ctx} takes "
                f"{n_ctx - MARGIN}: give a larger ctx-size",
            )
        c.require_tokens(len(prompt), 0)
        opened.forget_output()
        await self._open_grammar(opened, Model.of(session))
        seed = opened.settings.seed
        opened.random_state = seed if seed >= 0 else int.from_bytes(c.random.draw(8), "little")
        session.truncate(0)
        await c.prefill(session, prompt)

    async def _next(self, opened: NnContext) -> bool:
        """Appends a token to the output; whether it ends the text."""
        c = self._c
        session = c.session(opened.session)
        if opened.output_ids:
            n_ctx = opened.settings.context_size(Model.of(session).hparams.n_ctx_train)
            if session.n_tokens >= n_ctx:
                raise NnFault(NnErrno.CONTEXT_FULL)
            token = opened.output_ids[-1]
            session.owner.require_token(token)  # it may come from a snapshot
            c.require_tokens(0, 1)
            await Decode(c.message, Step(session, (token,)))
            c.message.tokens_out += 1
        c.message.check_going_on()
        grammar = c.handles.get(opened.grammar, Grammar) if opened.grammar else None
        token = await self._draw(opened, session, grammar)
        tokenizer = Model.of(session).tokenizer
        opened.add(token, tokenizer.decode([token], render_special=True))
        ends = TokenFlag.EOG in tokenizer.flags(token)
        if grammar is not None and not ends:
            grammar.accept(token)
        return ends and not opened.settings.ignore_eos

    async def _draw(self, opened: NnContext, session: Session, grammar: Grammar | None) -> int:
        require_logits(session)
        settings = opened.settings.sampler
        if grammar is not None:
            grammar.mask(session.logits)

        def draw() -> tuple[int, int]:
            return sample(session.logits, settings, session.tokens, opened.random_state)

        try:
            sorts = _sorts_much(settings, session.layout.n_vocab)
            token, opened.random_state = await Aside(self._c.message, draw) if sorts else draw()
        except SettingsError as error:
            raise NnFault(NnErrno.RUNTIME_ERROR, str(error)) from None
        return token

    async def _open_grammar(self, opened: NnContext, model: Model) -> None:
        """Has the output begin a text that follows the grammar of the settings, if it has one."""
        c, settings = self._c, opened.settings
        close_grammar(c, opened)
        source = settings.json_schema or settings.grammar
        if not source:
            return
        kind = GrammarKind.JSON_SCHEMA if settings.json_schema else GrammarKind.GBNF
        c.limit("grammars", len(c.handles.all(Grammar)) + 1, c.limits.grammars)
        c.handles.require_room()
        opening = partial(model.grammars.open, kind, source, check=c.message.check_going_on)
        try:
            grammar = await Aside(c.message, opening)
        except GrammarError as error:
            raise refused(str(error)) from None
        opened.grammar = c.handles.add(grammar, opened.model)

    async def _embed(self, opened: NnContext) -> NnErrno:
        c, prompt = self._c, _prompt_of(opened)
        if len(prompt) > opened.settings.batch_size:
            raise NnFault(
                NnErrno.PROMPT_TOO_LONG,
                f"the text has {len(prompt)} tokens, and batch-size allows "
                f"{opened.settings.batch_size}",
            )
        values = await self._embedding(opened, c.granted.models[opened.model], prompt)
        if not all(map(math.isfinite, values)):
            raise NnFault(NnErrno.RUNTIME_ERROR, "the embedding has values that are no numbers")
        opened.forget_output()
        numbers = ",".join(f"{it:.10g}" for it in values)
        opened.output = f'{{"n_embedding": {len(values)}, "embedding": [{numbers}]}}'.encode()
        return NnErrno.SUCCESS

    async def _embedding(
        self, opened: NnContext, model: Model, prompt: list[int]
    ) -> tuple[float, ...]:
        """The embedding of a text, computed in memory that the host takes for it meanwhile."""
        c = self._c
        if model.hparams.pooling is Pooling.NONE:
            raise NnFault(
                NnErrno.UNSUPPORTED_OPERATION,
                f"{model.name} makes an embedding of each token, and none of a text",
            )
        try:
            _, n_embd = model.embedding_shape(len(prompt))
        except ContextFull as error:
            raise NnFault(NnErrno.PROMPT_TOO_LONG, str(error)) from None
        model.require_embeddable(prompt)
        c.require_tokens(len(prompt), 0)
        with self._memory.borrowed(_F32_NBYTES * n_embd) as span:
            room = c.memory.check(span.ptr, span.nbytes)
            normalised = opened.settings.normalise == 2
            begin = partial(model.embedding_jobs, prompt, c.binding, room, normalised=normalised)
            await Prompt(c.message, model, len(prompt), begin)
            data = c.memory.read(span.ptr, _F32_NBYTES * n_embd)
        c.message.tokens_in += len(prompt)
        return tuple(array("f", data))


def close_grammar(context: Context, opened: NnContext) -> None:
    """Closes a context's grammar, if it has one."""
    number, opened.grammar = opened.grammar, 0
    if number in context.handles.numbers():  # the guest may have closed it by its own handle
        context.handles.remove(number, Grammar)


def metadata(opened: NnContext, library: str) -> bytes:
    """What a context says of its last input and output; `library` is the version of llama.cpp."""
    return json.dumps(
        {
            "input_tokens": len(opened.prompt or ()),
            "output_tokens": len(opened.output_ids),
            "llama_build_number": 0,  # no library tells it
            "llama_commit": library,
        }
    ).encode()


def _prompt_of(opened: NnContext) -> list[int]:
    if not opened.prompt:
        raise refused("there is no input: set_input comes first")
    return opened.prompt


def _ends(opened: NnContext, ending: bytes) -> bool:
    """Whether the output has an ending in it that its last token completed."""
    return ending in opened.output[-len(ending) - len(opened.last) :]


def _sorts_much(settings: SamplerSettings, n_vocab: int) -> bool:
    return settings.temperature > 0 and n_vocab > _MAX_SORTED < (settings.top_k or n_vocab)
