"""The host's side of the guest ABI: `abi/host.toml`, in the same order.

Every method is a host function. It gets unsigned integers, checks each before it uses it, and
returns a value >= 0. What a guest does wrong becomes a `GuestFault` or an error with an `errno`,
and nothing has happened; any other error ends the message.

This is the only place where a guest's memory and a model meet.
"""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntFlag
from typing import TypeVar

from isthmus import abi
from isthmus.abi import (
    ChatFlag,
    DetokenizeFlag,
    EmbedFlag,
    Errno,
    GrammarKind,
    LogLevel,
    ModelFlag,
    TokenizeFlag,
)
from isthmus.actor.exchange import Exchange
from isthmus.actor.handles import HandleTable
from isthmus.actor.operation import Weight
from isthmus.actor.scheduler import MOST, Scheduler
from isthmus.actor.tensor import TensorUnit
from isthmus.actor.virtual import SeededRandom, VirtualClock
from isthmus.config import MAX_GRAMMAR_NBYTES, Limits
from isthmus.counters import Counters
from isthmus.device.buffer import Binding
from isthmus.errors import (
    ContextFull,
    GrammarError,
    GuestFault,
    LimitExceeded,
    ModelNotFound,
    ModelUnsupported,
    SettingsError,
)
from isthmus.memory import Region
from isthmus.model import Grammar, Model, SamplerSettings, Session, sample
from isthmus.model.hparams import Pooling
from isthmus.units import KIB, MIB, MOST_NBYTES_32, GuestPtr, align_up, format_nbytes
from isthmus.wasm.hostcalls import GuestMemory

Tool = Callable[[bytes], bytes]
_Flags = TypeVar("_Flags", bound=IntFlag)

MAX_NAME_NBYTES = 256
MAX_TEXT_NBYTES = MIB
MAX_ARGS_NBYTES = 16 * MIB
MAX_CHAT_MESSAGES = 64 * KIB
MAX_DETOKENIZE = MIB
MAX_RANDOM_NBYTES = MIB
MAX_HANDLES = 1024
MOST_SAID = 300
"""Characters of a guest's own reason that its caller is told."""
_SPAN_ALIGNMENT = 4096
_TENSOR_ALIGNMENT = 32
_EMBED_FLAGS = {None: ModelFlag(0), Pooling.NONE: ModelFlag.EMBED_TOKENS}

guest_log = logging.getLogger("isthmus.guest")
FREE_OUTPUT_NBYTES = MIB
"""Of the memory for a message's output that does not count, and the steps in which it does."""
OUTPUT_COPIES = 3
"""Of a message's output: as bytes, as text on its way, and in the reply."""
PIECE_NBYTES = 64
"""Of memory that a piece of output takes beside its text, however short it is."""
LOG_RECORD_NBYTES = 32
"""What a record counts as output beside its text."""
_LOG_LEVELS = {
    LogLevel.DEBUG: logging.DEBUG,
    LogLevel.INFO: logging.INFO,
    LogLevel.WARNING: logging.WARNING,
    LogLevel.ERROR: logging.ERROR,
}


@dataclass(frozen=True)
class Granted:
    """What one actor was given: everything that it can reach outside its own memory."""

    models: Mapping[str, Model] = field(default_factory=dict)
    tools: Mapping[str, Tool] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    label: str = ""
    """Its name in the log."""


class HostApi:
    """One actor's host functions and everything that it has opened.

    Used by the thread that runs the guest, and by no other while it runs.
    """

    def __init__(
        self,
        granted: Granted,
        clock: VirtualClock,
        random: SeededRandom,
        counters: Counters,
        check: Callable[[], None],
        deadline: Callable[[], float | None],
        scheduler: Scheduler,
    ) -> None:
        self._scheduler = scheduler
        self._claimant = scheduler.claimant(self._check_going_on, deadline, granted.limits.weight)
        self._granted = granted
        self._clock = clock
        self._random = random
        self._counters = counters
        self._check = check
        self.handles = HandleTable(MAX_HANDLES)
        self.log_position = 0
        """How many records the guest has logged in all its life."""
        self.exchange = Exchange(b"", lambda text: None)
        """The message that it serves, or served last."""

    def attach(
        self,
        region: Region,
        memory: GuestMemory,
        binding: Binding,
        tensor_unit: TensorUnit,
        hold: Callable[[int], None],
    ) -> None:
        """Gives it the memory of the instance that it serves, once that exists.

        `hold` counts bytes of output as memory until the message ends, or raises Overloaded.
        """
        self._region = region
        self._memory = memory
        self._binding = binding
        self._tensor_unit = tensor_unit
        self._hold = hold

    def functions(self) -> dict[str, Callable[..., int]]:
        """The host functions by their names in `abi/host.toml`."""
        return {function.name: getattr(self, function.name) for function in abi.HOST_FUNCTIONS}

    def interrupt(self) -> None:
        """Has it look at once, where it waits, whether the message is to end; from any thread."""
        self._claimant.interrupt()

    def begin(self, exchange: Exchange) -> None:
        """Serves this message from now on."""
        self.exchange = exchange

    def end(self) -> None:
        """The message has ended: nobody need wait for this actor's next token."""
        for model in {session.model for session in self.handles.all(Session)}:
            self._scheduler.leave(self._claimant, model)

    def replay(self, session: Session, tokens: Sequence[int]) -> None:
        """Prefills a restored session's tokens again, in its turn, as the host wants it."""
        self._scheduler.prefill(self._claimant, session, tokens)
        self.exchange.tokens_in += len(tokens)

    def close(self) -> None:
        """Closes every session."""
        self.end()
        for session in self.handles.all(Session):
            session.close()

    # ------------------------------------------------------------------ model

    def model_open(self, name_ptr: int, name_nbytes: int) -> int:
        name = self._memory.read_text(name_ptr, name_nbytes, MAX_NAME_NBYTES)
        if name not in self._granted.models:
            given = ", ".join(self._granted.models) or "none"
            with self._explained():
                raise ModelNotFound(
                    f"the guest asks for a model named {name!r}, and it was given {given}: give it "
                    f"by --model {name}=PATH, or models={{{name!r}: model}}"
                )
        return self.handles.add(self._granted.models[name], name)

    def model_info(self, model: int, info_ptr: int) -> int:
        opened = self._model(model)
        flags, bos, eos, eot = ModelFlag(0), -1, -1, -1
        if opened.has_tokenizer:
            tokenizer = opened.tokenizer
            bos, eos, eot = tokenizer.bos, tokenizer.eos, tokenizer.eot
            flags |= ModelFlag.ADD_BOS if tokenizer.adds_bos else 0
        flags |= ModelFlag.CHAT_TEMPLATE if opened.has_chat_template else 0
        shape = opened.hparams
        flags |= ModelFlag.SESSIONS if opened.generates else 0
        flags |= _EMBED_FLAGS.get(shape.pooling, ModelFlag.EMBED)
        info = (opened.n_vocab, shape.n_ctx_train, shape.n_embd, shape.n_layer)
        self._memory.write(info_ptr, abi.MODEL_INFO.pack(*info, bos, eos, eot, flags))
        return 0

    def model_close(self, model: int) -> int:
        opened = self._model(model)
        if any(session.model is opened for session in self.handles.all(Session)):
            raise GuestFault(Errno.EBUSY)
        self.handles.remove(model, Model)
        return 0

    def token_flags(self, model: int, token: int) -> int:
        opened = self._model(model)
        opened.require_token(_signed(token))
        return int(opened.tokenizer.flags(token)) if opened.has_tokenizer else 0

    def tokenize(
        self, model: int, text_ptr: int, text_nbytes: int, flags: int, tokens_ptr: int, cap: int
    ) -> int:
        tokenizer = self._model(model).tokenizer
        wanted = _flags(TokenizeFlag, flags)
        self._memory.check_aligned(tokens_ptr, 4 * cap, 4)
        ids = tokenizer.encode(
            self._memory.read_text(text_ptr, text_nbytes, MAX_TEXT_NBYTES),
            add_special=TokenizeFlag.ADD_SPECIAL in wanted,
            parse_special=TokenizeFlag.PARSE_SPECIAL in wanted,
            check=self._check,
        )
        if len(ids) <= cap:
            self._memory.write(tokens_ptr, array("i", ids).tobytes())
        return len(ids)

    def detokenize(
        self, model: int, tokens_ptr: int, n_tokens: int, flags: int, text_ptr: int, text_cap: int
    ) -> int:
        tokenizer = self._model(model).tokenizer
        wanted = _flags(DetokenizeFlag, flags)
        if n_tokens > MAX_DETOKENIZE:
            raise GuestFault(Errno.EINVAL)
        tokens = self._memory.read_i32_array(tokens_ptr, n_tokens)
        render = DetokenizeFlag.RENDER_SPECIAL in wanted
        return self._fill(text_ptr, text_cap, tokenizer.decode(tokens, render_special=render))

    def chat_template(
        self,
        model: int,
        messages_ptr: int,
        n_messages: int,
        flags: int,
        text_ptr: int,
        text_cap: int,
    ) -> int:
        opened = self._model(model)
        wanted = _flags(ChatFlag, flags)
        if n_messages > MAX_CHAT_MESSAGES:
            raise GuestFault(Errno.EINVAL)
        messages = self._read_messages(messages_ptr, n_messages)
        prompt = ChatFlag.ADD_GENERATION_PROMPT in wanted
        text = opened.format_chat(
            messages, add_generation_prompt=prompt, check=self._check_going_on
        )
        return self._fill(text_ptr, text_cap, text.encode())

    def session_nbytes(self, model: int, n_ctx: int) -> int:
        opened = self._model(model)
        with self._explained():
            nbytes = opened.layout(n_ctx).nbytes
        if nbytes > MOST_NBYTES_32 and not self._memory.is_64:
            self.exchange.explained[Errno.ENOMEM] = _too_large(n_ctx, nbytes)
        return nbytes

    def session_open(self, model: int, n_ctx: int, ptr: int, nbytes: int) -> int:
        opened = self._model(model)
        with self._explained():
            layout = opened.layout(n_ctx)
        if nbytes < layout.nbytes:
            raise GuestFault(Errno.EINVAL)
        self._memory.check_aligned(ptr, nbytes, _SPAN_ALIGNMENT)
        self._require_no_session(ptr, nbytes)
        sessions = self.handles.all(Session)
        limits = self._granted.limits
        kv_nbytes = sum(s.layout.kv_nbytes for s in sessions) + layout.kv_nbytes
        self._limit("sessions", len(sessions) + 1, limits.sessions)
        self._limit("kv_nbytes", kv_nbytes, limits.kv_nbytes)
        self.handles.require_room()
        return self.handles.add(
            opened.open_session(self._region, self._binding, GuestPtr(ptr), layout),
            self.handles.model_of(model),
        )

    def session_close(self, session: int) -> int:
        opened = self.handles.remove(session, Session)
        self._scheduler.leave(self._claimant, opened.model)
        opened.close()
        return 0

    def session_length(self, session: int) -> int:
        return self._session(session).n_tokens

    def prefill(self, session: int, tokens_ptr: int, n_tokens: int) -> int:
        opened = self._session(session)
        if n_tokens == 0:
            raise GuestFault(Errno.EINVAL)
        self._memory.check_aligned(tokens_ptr, 4 * n_tokens, 4)
        opened.require_room(n_tokens)
        tokens = self._memory.read_i32_array(tokens_ptr, n_tokens)
        self._require_tokens(n_tokens, 0)
        with self._timed():
            self._scheduler.prefill(self._claimant, opened, tokens)
        self.exchange.tokens_in += n_tokens
        return 0

    def decode(self, session: int, token: int) -> int:
        opened = self._session(session)
        self._require_tokens(0, 1)
        with self._timed():
            self._scheduler.decode(self._claimant, opened, _signed(token))
        self.exchange.tokens_out += 1
        return 0

    def decode_many(self, session: int, tokens_ptr: int, n_tokens: int, logits_ptr: int) -> int:
        opened = self._session(session)
        if not 1 <= n_tokens <= MOST:
            raise GuestFault(Errno.EINVAL)
        tokens = self._memory.read_i32_array(tokens_ptr, n_tokens)
        nbytes = 4 * (n_tokens - 1) * opened.layout.n_vocab
        logits = self._memory.check_aligned(logits_ptr, nbytes, 4)
        self._require_no_session(logits_ptr, nbytes)
        self._require_tokens(0, n_tokens)
        with self._timed():
            self._scheduler.decode_many(self._claimant, opened, tokens, logits)
        self.exchange.tokens_out += n_tokens
        return 0

    def logits(self, session: int) -> int:
        opened = self._session(session)
        _require_logits(opened)
        return opened.logits_ptr

    def sample(self, session: int, sampler_ptr: int) -> int:
        opened = self._session(session)
        self._memory.check_aligned(sampler_ptr, abi.SAMPLER.size, 8)
        _require_logits(opened)
        *values, state = self._memory.unpack(abi.SAMPLER, sampler_ptr)
        settings = SamplerSettings(*values)
        token, state = sample(opened.logits, settings, opened.tokens, state)
        self._memory.write(sampler_ptr, abi.SAMPLER.pack(*values, state))
        return token

    def truncate(self, session: int, n_tokens: int) -> int:
        self._session(session).truncate(n_tokens)
        return 0

    def session_copy(self, destination: int, source: int, n_tokens: int) -> int:
        to, origin = self._session(destination), self._session(source)
        if to is origin or to.model is not origin.model or n_tokens > origin.n_tokens:
            raise GuestFault(Errno.EINVAL)
        to.copy_from(origin, n_tokens, self._check)
        return 0

    def embed(
        self,
        model: int,
        tokens_ptr: int,
        n_tokens: int,
        flags: int,
        embedding_ptr: int,
        embedding_cap: int,
    ) -> int:
        opened = self._model(model)
        normalised = EmbedFlag.NORMALISE in _flags(EmbedFlag, flags)
        with self._explained():
            rows, n_embd = opened.embedding_shape(n_tokens)
        self._memory.check_aligned(tokens_ptr, 4 * n_tokens, 4)
        room = self._memory.check_aligned(embedding_ptr, 4 * embedding_cap, _TENSOR_ALIGNMENT)
        count = rows * n_embd
        if count > embedding_cap:
            return count
        self._require_no_session(embedding_ptr, 4 * count)
        tokens = self._memory.read_i32_array(tokens_ptr, n_tokens)
        self._require_tokens(n_tokens, 0)
        with self._timed():
            self._scheduler.embed(
                self._claimant, opened, tokens, self._binding, room, normalised=normalised
            )
        self.exchange.tokens_in += n_tokens
        return count

    # ------------------------------------------------------------------ grammar

    def grammar_open(self, model: int, kind: int, source_ptr: int, source_nbytes: int) -> int:
        opened = self._model(model)
        if kind not in {known.value for known in GrammarKind}:
            raise GuestFault(Errno.EINVAL)
        source = self._memory.read_text(source_ptr, source_nbytes, MAX_GRAMMAR_NBYTES)
        n_open = len(self.handles.all(Grammar))
        self._limit("grammars", n_open + 1, self._granted.limits.grammars)
        self.handles.require_room()
        try:
            with self._timed():
                grammar = opened.grammars.open(
                    GrammarKind(kind), source, check=self._check_going_on
                )
        except GrammarError as error:
            text = str(error)
            self.exchange.explained[Errno.EINVAL] = GrammarError(text)
            self._spend_output(LOG_RECORD_NBYTES + len(text))
            self._log(logging.WARNING, text)
            raise
        return self.handles.add(grammar, self.handles.model_of(model))

    def grammar_mask(self, grammar: int, session: int) -> int:
        opened, masked = self._grammar(grammar), self._session(session)
        if masked.model is not opened.model:
            raise GuestFault(Errno.EINVAL)
        _require_logits(masked)
        with self._timed():
            return opened.mask(masked.logits)

    def grammar_accept(self, grammar: int, token: int) -> int:
        opened = self._grammar(grammar)
        opened.model.require_token(_signed(token))
        opened.accept(token)
        return 0

    def grammar_close(self, grammar: int) -> int:
        self.handles.remove(grammar, Grammar)
        return 0

    # ------------------------------------------------------------------ tensor

    def weight_find(self, model: int, name_ptr: int, name_nbytes: int, tensor_ptr: int) -> int:
        opened = self._model(model)
        name = self._memory.read_text(name_ptr, name_nbytes, MAX_NAME_NBYTES)
        layout = abi.TENSOR_64 if self._memory.is_64 else abi.TENSOR
        self._memory.check_aligned(tensor_ptr, layout.size, 4)
        info = opened.weights.info(name)
        if info is None:
            raise GuestFault(Errno.ENOENT)
        handle = self.handles.add(Weight(opened, name), self.handles.model_of(model))
        shape = (*info.shape, 1, 1, 1)[:4]
        self._memory.write(tensor_ptr, layout.pack(info.dtype, handle, 0, 0, *shape))
        return 0

    def compute(self, operations_ptr: int, n_operations: int) -> int:
        self._check()
        with self._timed():
            self._tensor_unit.compute(operations_ptr, n_operations, self._check_going_on)
        return 0

    # ------------------------------------------------------------------ actor

    def message_read(self, ptr: int, cap: int) -> int:
        return self._fill(ptr, cap, self.exchange.message)

    def emit(self, ptr: int, nbytes: int) -> int:
        data = self._output(ptr, nbytes)
        self.exchange.emit(data)
        return 0

    def reply(self, ptr: int, nbytes: int) -> int:
        self.exchange.reply = self._output(ptr, nbytes)
        return 0

    def log(self, level: int, ptr: int, nbytes: int) -> int:
        if level not in {known.value for known in LogLevel}:
            raise GuestFault(Errno.EINVAL)
        self._spend_output(LOG_RECORD_NBYTES)
        data = self._output(ptr, nbytes, stoppable=False)
        self._log(_LOG_LEVELS[LogLevel(level)], data.decode(errors="replace"))
        return 0

    def clock_ns(self) -> int:
        return self._clock.read()

    def random(self, ptr: int, nbytes: int) -> int:
        if nbytes > MAX_RANDOM_NBYTES:
            raise GuestFault(Errno.EINVAL)
        self._memory.check(ptr, nbytes)
        self._memory.write(ptr, self._random.draw(nbytes))
        return 0

    def tool_call(self, name_ptr: int, name_nbytes: int, args_ptr: int, args_nbytes: int) -> int:
        name = self._memory.read_text(name_ptr, name_nbytes, MAX_NAME_NBYTES)
        if args_nbytes > MAX_ARGS_NBYTES:
            raise GuestFault(Errno.EINVAL)
        args = self._memory.read(args_ptr, args_nbytes)
        tool = self._granted.tools.get(name)
        if tool is None:
            raise GuestFault(Errno.ENOENT)
        self._check()
        try:
            result = tool(args)
        except Exception:
            guest_log.exception("the tool %r failed", name, extra={"agent": self._granted.label})
            raise GuestFault(Errno.EIO) from None
        if not isinstance(result, bytes):
            raise SettingsError(f"the tool {name!r} returned {type(result).__name__}, not bytes")
        self.exchange.tool_result = result
        return len(result)

    def tool_result(self, ptr: int, cap: int) -> int:
        if self.exchange.tool_result is None:
            raise GuestFault(Errno.EINVAL)
        return self._fill(ptr, cap, self.exchange.tool_result)

    # ------------------------------------------------------------------ WASI

    def write_stream(self, stream: int, data: bytes) -> None:
        """What the guest writes to standard output (1) or standard error (2)."""
        self._spend_output(LOG_RECORD_NBYTES + len(data))
        text = data.decode(errors="replace").rstrip("\n")
        self._log(logging.INFO if stream == 1 else logging.WARNING, text)

    # ------------------------------------------------------------------ parts

    def _log(self, level: int, text: str) -> None:
        self.log_position += 1
        if level >= logging.WARNING:
            self.exchange.last_warning = text[:MOST_SAID]
        guest_log.log(level, "%s", text, extra={"agent": self._granted.label})

    def _model(self, handle: int) -> Model:
        return self.handles.get(handle, Model)

    def _session(self, handle: int) -> Session:
        return self.handles.get(handle, Session)

    def _grammar(self, handle: int) -> Grammar:
        return self.handles.get(handle, Grammar)

    def _require_no_session(self, ptr: int, nbytes: int) -> None:
        """GuestFault(EBUSY) where the bytes belong to one."""
        sessions = self.handles.all(Session)
        if any(s.ptr < ptr + nbytes and ptr < s.ptr + s.layout.nbytes for s in sessions):
            raise GuestFault(Errno.EBUSY)

    def _fill(self, ptr: int, cap: int, data: bytes) -> int:
        """Writes `data` if it fits in `cap` bytes; returns how many it needs."""
        self._memory.check(ptr, cap)
        if len(data) <= cap:
            self._memory.write(ptr, data)
        return len(data)

    def _read_messages(self, ptr: int, count: int) -> list[dict[str, str]]:
        layout = abi.CHAT_MESSAGE_64 if self._memory.is_64 else abi.CHAT_MESSAGE
        self._memory.check_aligned(ptr, count * layout.size, 4)
        messages, left = [], MAX_TEXT_NBYTES
        for index in range(count):
            raw = abi.ChatMessage(*self._memory.unpack(layout, ptr + index * layout.size))
            left -= raw.role_nbytes + raw.content_nbytes
            if left < 0:
                raise GuestFault(Errno.EINVAL)
            role = self._memory.read_text(raw.role_ptr, raw.role_nbytes, MAX_NAME_NBYTES)
            content = self._memory.read_text(raw.content_ptr, raw.content_nbytes, MAX_TEXT_NBYTES)
            messages.append({"role": role, "content": content})
        return messages

    def _output(self, ptr: int, nbytes: int, *, stoppable: bool = True) -> bytes:
        self._memory.check(ptr, nbytes)
        if stoppable:
            self._refuse_if_stopping()
        self._spend_output(nbytes)
        return self._memory.read(ptr, nbytes)

    def _spend_output(self, nbytes: int) -> None:
        exchange = self.exchange
        limit = self._granted.limits.output_nbytes
        total = exchange.output_nbytes + nbytes
        self._limit("output_nbytes", total, limit)
        taken = OUTPUT_COPIES * total + PIECE_NBYTES * exchange.n_outputs
        if taken > FREE_OUTPUT_NBYTES + exchange.held_nbytes:
            self._hold(align_up(taken, FREE_OUTPUT_NBYTES) - exchange.held_nbytes)
        exchange.output_nbytes = total
        exchange.n_outputs += 1

    def _limit(self, name: str, value: int, limit: int | None) -> None:
        """Refuses what is beyond a limit, and notes it."""
        if limit is not None and value > limit:
            self.exchange.reached(name, limit)
            raise GuestFault(Errno.ELIMIT)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Keeps an error's text for the caller, who hears of an errno only through the guest."""
        try:
            yield
        except (ModelNotFound, ModelUnsupported, ContextFull) as error:
            if error.errno is not None:
                self.exchange.explained[error.errno] = error
            raise

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter_ns()
        try:
            yield
        finally:
            self._counters.host_ns += time.perf_counter_ns() - start

    def _require_tokens(self, n_in: int, n_out: int) -> None:
        """Before prefill and decode: whether the message goes on, and may use so many tokens."""
        self._check_going_on()
        exchange, limits = self.exchange, self._granted.limits
        self._limit("tokens", exchange.n_tokens + n_in + n_out, limits.tokens)
        self._limit("tokens_in", exchange.tokens_in + n_in, limits.tokens_in if n_in else None)
        self._limit("tokens_out", exchange.tokens_out + n_out, limits.tokens_out if n_out else None)

    def _check_going_on(self) -> None:
        """Between submissions: the deadline, hard cancellation, and the caller's wish to stop."""
        self._check()
        self._refuse_if_stopping()

    def _refuse_if_stopping(self) -> None:
        if self.exchange.stopping:
            raise GuestFault(Errno.ECANCELED)


def _require_logits(session: Session) -> None:
    if not session.has_logits:
        raise GuestFault(Errno.EINVAL)


def _too_large(n_ctx: int, nbytes: int) -> LimitExceeded:
    """What the caller of a 32-bit guest hears when it cannot have a session of that size."""
    return LimitExceeded(
        f"a context of {n_ctx} tokens takes {format_nbytes(nbytes)}, and the guest's memory is "
        "32-bit, 4 GiB at most: spawn a guest built for wasm64 (chat64 or complete64, or "
        "--memory64), give a smaller n_ctx, or load the model with kv_type q8_0 or q4_0",
        "memory_nbytes",
    )


def _signed(value: int) -> int:
    return value - (1 << 32) if value >= 1 << 31 else value


def _flags(kind: type[_Flags], value: int) -> _Flags:
    """The flags that `value` stands for; GuestFault where a bit is not known."""
    if value & ~sum(flag.value for flag in kind):
        raise GuestFault(Errno.EINVAL)
    return kind(value)
