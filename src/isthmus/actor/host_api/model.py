"""The host functions of the group `model` in `abi/host.toml`, in its order."""

from __future__ import annotations

from array import array
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar

from isthmus import abi
from isthmus.abi import (
    ChatFlag,
    DetokenizeFlag,
    EmbedFlag,
    Errno,
    TokenizeFlag,
)
from isthmus.actor.ask import Aside, Prompt
from isthmus.actor.host_api.append import Append, append_each, append_many
from isthmus.actor.host_api.context import (
    MAX_NAME_NBYTES,
    MAX_TEXT_NBYTES,
    Context,
    flags_of,
    require_bits,
    require_logits,
    signed,
)
from isthmus.actor.host_api.embedding import begin_embedding
from isthmus.actor.host_api.flags import model_flags
from isthmus.actor.host_api.opening import admit_session
from isthmus.actor.plan import MAX_STEP_TOKENS
from isthmus.errors import GuestFault, LimitExceeded, ModelNotFound
from isthmus.model import Model, SamplerSettings, Session, sample
from isthmus.model.sampling.top import MAX_TOP, PAIR_NBYTES, TOP_ALIGNMENT
from isthmus.units import KIB, MAX_NBYTES_32, MIB, GuestPtr, format_nbytes

MAX_CHAT_MESSAGES = 64 * KIB
MAX_DETOKENIZE = MIB
_EPOCH = datetime(1970, 1, 1)
_SPAN_ALIGNMENT = 4096
_TENSOR_ALIGNMENT = 32
_RENDER_SPECIAL = int(DetokenizeFlag.RENDER_SPECIAL)
_SHORT_TEXT_NBYTES = 4 * KIB
"""Bytes of text that are tokenized in line, in about a millisecond; more on another thread."""
_SHORT_COPY_NBYTES = 4 * MIB
"""Bytes of a session that are copied in line, in about a millisecond."""
_SHORT_TOKENS = 2 * KIB
"""Tokens whose text is put together in line, in some milliseconds if it is asked for first."""
_MAX_SORTED = 16 * KIB
"""Logits that are sorted in line, in about a millisecond."""


_Result = TypeVar("_Result")


class ModelFunctions:
    """See the module. One for each actor."""

    def __init__(self, context: Context) -> None:
        self._c = context

    def model_open(self, name_ptr: int, name_nbytes: int) -> int:
        c = self._c
        name = c.memory.read_text(name_ptr, name_nbytes, MAX_NAME_NBYTES)
        models = c.granted.models
        if name not in models:
            given = ", ".join(models) or "none"
            with c.explained():
                raise ModelNotFound(
                    f"the guest asks for a model named {name!r}, and it was given {given}: give it "
                    f"by --model {name}=PATH, or models={{{name!r}: model}}"
                )
        return c.handles.add(models[name], name)

    def model_info(self, model: int, info_ptr: int) -> int:
        opened = self._c.model(model)
        bos, eos, eot = -1, -1, -1
        if opened.has_tokenizer:
            tokenizer = opened.tokenizer
            bos, eos, eot = tokenizer.bos, tokenizer.eos, tokenizer.eot
        shape, flags = opened.hparams, model_flags(opened)
        info = (opened.n_vocab, shape.n_ctx_train, shape.n_embd, shape.n_layer)
        self._c.memory.write(info_ptr, abi.MODEL_INFO.pack(*info, bos, eos, eot, flags))
        return 0

    def model_close(self, model: int) -> int:
        handles = self._c.handles
        opened = self._c.model(model)
        if any(session.owner is opened for session in handles.all(Session)):
            raise GuestFault(Errno.EBUSY)
        handles.remove(model, Model)
        return 0

    def token_flags(self, model: int, token: int) -> int:
        opened = self._c.model(model)
        opened.require_token(signed(token))
        return opened.tokenizer.flags(token) if opened.has_tokenizer else 0

    async def tokenize(
        self, model: int, text_ptr: int, text_nbytes: int, flags: int, tokens_ptr: int, cap: int
    ) -> int:
        c = self._c
        tokenizer = c.model(model).tokenizer
        wanted = flags_of(TokenizeFlag, flags)
        c.memory.check_aligned(tokens_ptr, 4 * cap, 4)
        encode = partial(
            tokenizer.encode,
            c.memory.read_text(text_ptr, text_nbytes, MAX_TEXT_NBYTES),
            add_special=TokenizeFlag.ADD_SPECIAL in wanted,
            parse_special=TokenizeFlag.PARSE_SPECIAL in wanted,
            check=c.message.check,
        )
        is_short = text_nbytes <= _SHORT_TEXT_NBYTES and tokenizer.is_warm
        ids = encode() if is_short else await Aside(c.message, encode)
        if len(ids) <= cap:
            c.memory.write(tokens_ptr, array("i", ids).tobytes())
        return len(ids)

    def detokenize(
        self, model: int, tokens_ptr: int, n_tokens: int, flags: int, text_ptr: int, text_cap: int
    ) -> int | Aside[int]:
        c = self._c
        tokenizer = c.model(model).tokenizer
        require_bits(flags, _RENDER_SPECIAL)
        if n_tokens > MAX_DETOKENIZE:
            raise GuestFault(Errno.EINVAL)
        if n_tokens > _SHORT_TOKENS:
            decode = partial(tokenizer.decode, render_special=flags != 0)
            many = partial(self._detokenize_many, decode, tokens_ptr, n_tokens, text_ptr, text_cap)
            return Aside(c.message, many)
        tokens = c.memory.read_i32_array(tokens_ptr, n_tokens)
        return c.fill(text_ptr, text_cap, tokenizer.decode(tokens, render_special=flags != 0))

    def _detokenize_many(
        self,
        decode: Callable[[array[int]], bytes],
        tokens_ptr: int,
        n_tokens: int,
        text_ptr: int,
        text_cap: int,
    ) -> int:
        tokens = self._c.memory.read_i32_array(tokens_ptr, n_tokens)
        parts = range(0, n_tokens, _SHORT_TOKENS)
        text = b"".join([decode(tokens[at : at + _SHORT_TOKENS]) for at in parts])
        return self._c.fill(text_ptr, text_cap, text)

    async def chat_template(
        self,
        model: int,
        messages_ptr: int,
        n_messages: int,
        flags: int,
        text_ptr: int,
        text_cap: int,
    ) -> int:
        c = self._c
        opened = c.model(model)
        wanted = flags_of(ChatFlag, flags)
        if n_messages > MAX_CHAT_MESSAGES:
            raise GuestFault(Errno.EINVAL)
        now = _EPOCH + timedelta(microseconds=c.clock.now_ns // 1000)

        def render() -> int:
            text = opened.format_chat(
                self._read_messages(messages_ptr, n_messages),
                add_generation_prompt=ChatFlag.ADD_GENERATION_PROMPT in wanted,
                now=now,
                check=c.message.check_going_on,
            )
            return c.fill(text_ptr, text_cap, text.encode())

        return await Aside(c.message, render)

    def session_nbytes(self, model: int, n_ctx: int) -> int:
        c = self._c
        with c.explained():
            nbytes = c.model(model).layout(n_ctx).nbytes
        if nbytes > MAX_NBYTES_32 and not c.memory.is_64:
            c.message.explained[Errno.ENOMEM] = _too_large(n_ctx, nbytes)
        return nbytes

    def session_open(self, model: int, n_ctx: int, ptr: int, nbytes: int) -> int:
        c = self._c
        opened = c.model(model)
        with c.explained():
            layout = opened.layout(n_ctx)
        if nbytes < layout.nbytes:
            raise GuestFault(Errno.EINVAL)
        c.memory.check_aligned(ptr, nbytes, _SPAN_ALIGNMENT)
        c.require_no_session(ptr, nbytes)
        c.require_no_top(ptr, nbytes)
        admit_session(c, layout)
        with c.explained():
            session = opened.open_session(c.region, c.binding, GuestPtr(ptr), layout)
        return c.handles.add(session, c.handles.model_of(model))

    def session_close(self, session: int) -> int:
        self._c.handles.remove(session, Session).close()
        return 0

    def session_length(self, session: int) -> int:
        return self._c.session(session).n_tokens

    async def prefill(self, session: int, tokens_ptr: int, n_tokens: int) -> int:
        c = self._c
        opened = c.session(session)
        if n_tokens == 0:
            raise GuestFault(Errno.EINVAL)
        c.memory.check_aligned(tokens_ptr, 4 * n_tokens, 4)
        opened.require_ready(n_tokens)
        tokens = c.memory.read_i32_array(tokens_ptr, n_tokens)
        c.require_tokens(n_tokens, 0)
        with c.timed():
            await c.prefill(opened, tokens)
        return 0

    def decode(self, session: int, token: int) -> Awaitable[int]:
        return Append.of(self._c, session).next(token)

    async def decode_many(
        self, session: int, tokens_ptr: int, n_tokens: int, logits_ptr: int
    ) -> int:
        c = self._c
        opened = c.session(session)
        if not 1 <= n_tokens <= MAX_STEP_TOKENS:
            raise GuestFault(Errno.EINVAL)
        tokens = c.memory.read_i32_array(tokens_ptr, n_tokens)
        nbytes = 4 * (n_tokens - 1) * opened.layout.n_vocab
        logits = c.memory.check_aligned(logits_ptr, nbytes, 4)
        c.require_no_session(logits_ptr, nbytes)
        c.require_tokens(0, n_tokens)
        Model.of(opened).require_tokens(tokens)
        opened.require_ready(n_tokens)
        with c.timed():
            await append_many(c, opened, tokens, logits)
        c.message.tokens_out += n_tokens
        return 0

    async def decode_batch(self, steps_ptr: int, n_steps: int) -> int:
        c = self._c
        if not 1 <= n_steps <= MAX_STEP_TOKENS:
            raise GuestFault(Errno.EINVAL)
        c.memory.check_aligned(steps_ptr, abi.STEP.size * n_steps, 4)
        numbers = c.memory.read_i32_array(steps_ptr, 2 * n_steps)
        sessions, tokens = [c.session(it) for it in numbers[::2]], numbers[1::2]
        models = {Model.of(it) for it in sessions}
        if len({*sessions}) < n_steps or len(models) > 1:
            raise GuestFault(Errno.EINVAL)
        c.require_tokens(0, n_steps)
        models.pop().require_tokens(tokens)
        for opened in sessions:
            opened.require_ready(1)
        with c.timed():
            await append_each(c, sessions, tokens)
        c.message.tokens_out += n_steps
        return 0

    def session_top_k(self, session: int, k: int, candidates_ptr: int) -> int:
        c = self._c
        opened = c.session(session)
        if k > min(MAX_TOP, opened.layout.n_vocab):
            raise GuestFault(Errno.EINVAL)
        nbytes = PAIR_NBYTES * k
        if k:
            c.memory.check_aligned(candidates_ptr, nbytes, TOP_ALIGNMENT)
            c.require_no_session(candidates_ptr, nbytes)
        opened.leave_top(k, GuestPtr(candidates_ptr))
        if opened.top is None:
            return 0
        opened.top.expire()
        return int(Model.of(opened).finds_top)

    def logits(self, session: int) -> int:
        opened = self._c.session(session)
        require_logits(opened)
        return opened.logits_ptr

    def sample(self, session: int, sampler_ptr: int) -> int | Aside[int]:
        memory = self._c.memory
        opened = self._c.session(session)
        memory.check_aligned(sampler_ptr, abi.SAMPLER.size, 8)
        require_logits(opened)
        *values, state = memory.unpack(abi.SAMPLER, sampler_ptr)
        settings = SamplerSettings(*values)

        def draw() -> int:
            token, after = sample(opened.logits, settings, opened.tokens, state)
            memory.write(sampler_ptr, abi.SAMPLER.pack(*values, after))
            return token

        n_vocab = opened.layout.n_vocab
        if settings.temperature > 0 and n_vocab > _MAX_SORTED < (settings.top_k or n_vocab):
            return Aside(self._c.message, draw)
        return draw()

    async def session_checkpoint(self, session: int) -> int:
        opened = self._c.session(session)
        return int(await self._copying(opened.state_nbytes, opened.checkpoint))

    def session_reach(self, session: int, n_tokens: int) -> int:
        return self._c.session(session).reach(n_tokens)

    async def truncate(self, session: int, n_tokens: int) -> int:
        opened = self._c.session(session)
        with self._c.explained():
            await self._copying(opened.state_nbytes, partial(opened.truncate, n_tokens))
        return 0

    async def session_copy(self, destination: int, source: int, n_tokens: int) -> int:
        c = self._c
        to, origin = c.session(destination), c.session(source)
        if to is origin or to.owner is not origin.owner or n_tokens > origin.n_tokens:
            raise GuestFault(Errno.EINVAL)
        copy = partial(to.copy_from, origin, n_tokens, c.message.check)
        with c.explained():
            await self._copying(to.copied_nbytes(n_tokens), copy)
        return 0

    async def embed(
        self,
        model: int,
        tokens_ptr: int,
        n_tokens: int,
        flags: int,
        embedding_ptr: int,
        embedding_cap: int,
    ) -> int:
        c = self._c
        opened = c.model(model)
        normalised = EmbedFlag.NORMALISE in flags_of(EmbedFlag, flags)
        if normalised and opened.ranks:
            raise GuestFault(Errno.EINVAL)
        with c.explained():
            rows, n_embd = opened.embedding_shape(n_tokens)
        c.memory.check_aligned(tokens_ptr, 4 * n_tokens, 4)
        room = c.memory.check_aligned(embedding_ptr, 4 * embedding_cap, _TENSOR_ALIGNMENT)
        count = rows * n_embd
        if count > embedding_cap:
            return count
        c.require_no_session(embedding_ptr, 4 * count)
        tokens = c.memory.read_i32_array(tokens_ptr, n_tokens)
        begin, n_tokens = begin_embedding(c, model, tokens, room, normalised=normalised)
        with c.timed():
            await Prompt(c.message, opened, n_tokens, begin)
        c.message.tokens_in += n_tokens
        return count

    # ------------------------------------------------------------------ parts

    async def _copying(self, nbytes: int, copy: Callable[[], _Result]) -> _Result:
        """Does what copies so many bytes: in line, or on another thread if that takes long."""
        return copy() if nbytes <= _SHORT_COPY_NBYTES else await Aside(self._c.message, copy)

    def _read_messages(self, ptr: int, count: int) -> list[dict[str, str]]:
        memory = self._c.memory
        layout = abi.CHAT_MESSAGE_64 if memory.is_64 else abi.CHAT_MESSAGE
        memory.check_aligned(ptr, count * layout.size, 4)
        messages, left = [], MAX_TEXT_NBYTES
        for index in range(count):
            raw = abi.ChatMessage(*memory.unpack(layout, ptr + index * layout.size))
            left -= raw.role_nbytes + raw.content_nbytes
            if left < 0:
                raise GuestFault(Errno.EINVAL)
            role = memory.read_text(raw.role_ptr, raw.role_nbytes, MAX_NAME_NBYTES)
            content = memory.read_text(raw.content_ptr, raw.content_nbytes, MAX_TEXT_NBYTES)
            messages.append({"role": role, "content": content})
        return messages


def _too_large(n_ctx: int, nbytes: int) -> LimitExceeded:
    """What the caller of a 32-bit guest hears when it cannot have a session of that size."""
    return LimitExceeded(
        f"a context of {n_ctx} tokens takes {format_nbytes(nbytes)}, and the guest's memory is "
        "32-bit, 4 GiB at most: spawn a guest built for wasm64 (chat64 or complete64, or "
        "--memory64), give a smaller n_ctx, or load the model with kv_type q8_0 or q4_0",
        "memory_nbytes",
    )
