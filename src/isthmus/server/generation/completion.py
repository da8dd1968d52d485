"""From a list of token ids to text, by sandboxed agents that are kept for the next request.

`slots.py` chooses the agent. The guest `complete` keeps only what leaves every bit of an answer the
same, whichever agent gives it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np

from isthmus.abi import GrammarKind
from isthmus.actor import Actor
from isthmus.config import Limits
from isthmus.errors import ContextFull, GuestFailed
from isthmus.model import Model
from isthmus.model.tokenizer import Detokenizer
from isthmus.runtime import Runtime
from isthmus.server.generation.answering import Answer
from isthmus.server.generation.slots import Slot, Slots
from isthmus.server.http.entry import current
from isthmus.server.http.fair import Room
from isthmus.server.settings import ServerSettings
from isthmus.widening import fitting_guest

_GUEST = "complete"
_FINE = 512
"""Tokens at the beginning of a prompt that are prefilled in small chunks, where any cut has the
same bits. After more context the kernels for large ones are faster: twice at 3,000 tokens."""


@dataclass(frozen=True)
class Request:
    """One answer that is wanted."""

    prompt: Sequence[int]
    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    seed: int | None = None
    logprobs: int | None = None
    """How many of the most probable tokens are told beside each; None for no logprobs at all."""
    stop: tuple[str, ...] = ()
    bias: tuple[tuple[int, float], ...] = ()
    """What is added to the logits of tokens."""
    ignore_eos: bool = False
    """Whether it goes on behind the token that ends a text."""
    grammar: tuple[GrammarKind, str] | None = None
    """What the answer follows."""

    def message(self) -> bytes:
        """As the guest reads it, always with a seed: a fork has its parent's random numbers."""
        seed = secrets.randbits(63) if self.seed is None else self.seed
        words = [
            f"max_tokens={self.max_tokens}",
            f"temperature={self.temperature:.6g}",
            f"top_k={self.top_k}",
            f"top_p={self.top_p:.6g}",
            f"min_p={self.min_p:.6g}",
            f"repeat_penalty={self.repeat_penalty:.6g}",
            f"seed={seed}",
            f"ignore_eos={int(self.ignore_eos)}",
        ]
        if self.bias:
            words.append("bias=" + ",".join(f"{token}:{number:.6g}" for token, number in self.bias))
        words += [] if self.logprobs is None else [f"logprobs={self.logprobs}"]
        ids = b"".join(token.to_bytes(4, "little") for token in self.prompt)
        source = b""
        if self.grammar is not None:
            kind, text = self.grammar
            source = text.encode()
            words += [f"grammar={kind.value}", f"grammar_nbytes={len(source)}"]
        return " ".join(words).encode() + b"\n" + ids + source


@dataclass(frozen=True)
class Token:
    """One token of an answer."""

    id: int
    text: str
    """What became complete with it; a character's last token completes it."""
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class End:
    """How an answer ended."""

    reason: str
    """`stop` or `length`."""
    n_tokens: int
    n_cached: int
    """Tokens of the prompt that were not computed again."""


class Completer:
    """The agents that complete requests for one model."""

    def __init__(self, runtime: Runtime, model: Model, settings: ServerSettings) -> None:
        self.model = model
        self.n_ctx = min(settings.n_ctx, model.hparams.n_ctx_train)
        self._runtime = runtime
        self._settings = settings
        guest, self._limits = fitting_guest(_GUEST, model, self.n_ctx, Limits(), settings.memory64)
        self._guest = runtime.load_guest(guest)
        self._slots = Slots(self._spawn, settings.slots)
        self._room = Room(settings.slots, settings.waiting)

    def require_room(self) -> None:
        """Overloaded if a request could not even wait."""
        self._room.require(current().owner)

    async def complete(self, request: Request) -> AsyncGenerator[Token | End, None]:
        """The answer, token by token, and how it ended. Raises IsthmusError."""
        if len(request.prompt) >= self.n_ctx:
            raise ContextFull(
                f"the prompt has {len(request.prompt)} tokens; the context has {self.n_ctx}"
            )
        async with self._slot(request) as slot:
            answer = Answer(slot.actor, request.message(), self._settings.deadline_s)
            entry = current()
            entry.count_prompt(request.prompt)
            try:
                async for item in _read(self.model, answer, request):
                    entry.tokens_out += isinstance(item, Token) and item.id >= 0
                    yield item
            finally:
                await answer.close()

    @asynccontextmanager
    async def _slot(self, request: Request) -> AsyncIterator[Slot]:
        owner = current().owner
        async with self._room.place(owner):
            whose = None if self._settings.share_beginnings else owner
            slot = await self._slots.take(whose, np.array(request.prompt))
            try:
                yield slot
            finally:
                await asyncio.shield(self._slots.put_back(slot))

    def _spawn(self) -> Actor:
        """A fresh agent."""
        _ = self.model.packs  # tried out now, and not when many ask for the first time
        return self._runtime.spawn(
            self._guest,
            models={"default": self.model},
            args={"n_ctx": self.n_ctx, "fine": _FINE if self.model.exact_cuts else 0},
            limits=self._limits,
        )


async def _read(model: Model, answer: Answer, request: Request) -> AsyncIterator[Token | End]:
    """The guest's lines as tokens, with text that never cuts a character, up to a stop text."""
    detokenizer, stops = Detokenizer(model.tokenizer), _Stops(request.stop)
    n_tokens, n_cached, rest = 0, 0, ""
    async for piece in answer:
        *lines, rest = (rest + piece).split("\n")
        for line in lines:
            words = line.split(" ")
            if words[0] == "end":
                n_cached = int(words[2])
                text = stops.finish(detokenizer.finish())
                if text:
                    yield Token(-1, text)
                reason = "length" if words[1] == "length" else "stop"
                yield End("stop" if stops.found else reason, n_tokens, n_cached)
                return
            n_tokens += 1
            token = _token(words, stops.push(detokenizer.push(int(words[0]))))
            yield token
            if stops.found:
                yield End("stop", n_tokens, n_cached)
                return
    raise GuestFailed(0)


def _token(words: list[str], text: str) -> Token:
    if len(words) == 1:
        return Token(int(words[0]), text)
    pairs = (word.split(":") for word in words[2:])
    return Token(int(words[0]), text, float(words[1]), tuple((int(a), float(b)) for a, b in pairs))


class _Stops:
    """Holds back text that may be the beginning of a stop text, and ends at the first that is."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """What can be told now."""
        if not self._stops:
            return text
        self._held += text
        places = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if places:
            self.found = True
            return self._held[: min(places)]
        keep = max(_overlap(self._held, stop) for stop in self._stops)
        told = self._held[: len(self._held) - keep]
        self._held = self._held[len(told) :]
        return told

    def finish(self, text: str) -> str:
        """What was held back, at the end."""
        return self.push(text) + ("" if self.found else self._held)


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of the text begin the stop text."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
