"""One answer by the guest `complete`: what it is asked, and its lines read as tokens."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from isthmus.abi import GrammarKind
from isthmus.errors import GuestFailed
from isthmus.model import Model
from isthmus.model.tokenizer import Detokenizer
from isthmus.server.generation.answering import Answer
from isthmus.server.generation.wanted import Sampling
from isthmus.server.generation.words import Words

_LEAST = 1.2e-38
"""The least positive number that the guest reads: its numbers have 32 bits."""


@dataclass(frozen=True)
class ThoughtBound:
    """How long a thought may be, and the tokens that thoughts of a model begin and end with."""

    most: int
    """Tokens after which it is closed."""
    is_open: bool
    """Whether the prompt ends inside a thought."""
    opens: Sequence[int]
    closes: Sequence[int]
    close: Sequence[int]
    """What the answer gets to close a thought; `closes` is a part of it."""


@dataclass(frozen=True)
class Request:
    """One answer that is wanted of the guest."""

    prompt: Sequence[int]
    """Token ids."""
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    logprobs: int | None = None
    """How many of the most probable tokens are told beside each; None for no logprobs at all."""
    stop: tuple[str, ...] = ()
    grammar: tuple[GrammarKind, str] | None = None
    """What the answer follows."""
    thought: ThoughtBound | None = None
    rendered: Collection[int] = ()
    """Control tokens that are told as text; all others are left out."""

    def message(self) -> bytes:
        """The request as the guest reads it.

        It always has a seed: a fork has its parent's random numbers.
        """
        kind, source = (0, b"")
        if self.grammar is not None:
            kind, source = self.grammar[0].value, self.grammar[1].encode()
        sampling, thought = self.sampling, self.thought
        words = Words(
            max_tokens=self.max_tokens,
            temperature=_written(sampling.temperature),
            top_k=sampling.top_k,
            top_p=_written(sampling.top_p),
            min_p=_written(sampling.min_p),
            repeat_penalty=_written(sampling.repeat_penalty),
            repeat_last_n=sampling.repeat_last_n,
            seed=secrets.randbits(63) if sampling.seed is None else sampling.seed,
            logprobs=-1 if self.logprobs is None else self.logprobs,
            ignore_eos=int(sampling.ignore_eos),
            bias=",".join(f"{token}:{number:.9g}" for token, number in sampling.bias.items()),
            grammar=kind,
            grammar_nbytes=len(source),
            thinking=-1 if thought is None else thought.most,
            in_thought=int(thought is not None and thought.is_open),
            opens=_ids(thought.opens if thought is not None else ()),
            closes=_ids(thought.closes if thought is not None else ()),
            close=_ids(thought.close if thought is not None else ()),
        )
        prompt = b"".join(token.to_bytes(4, "little") for token in self.prompt)
        return words.line() + prompt + source


def _ids(tokens: Iterable[int]) -> str:
    return ",".join(map(str, tokens))


@dataclass(frozen=True)
class Token:
    """One token of an answer."""

    id: int
    """-1 for text that is left when the answer ends."""
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
    stop: str | None = None
    """The text of `Request.stop` that ended it."""


async def read_tokens(model: Model, answer: Answer, request: Request) -> AsyncIterator[Token | End]:
    """The guest's lines as tokens, with text that never cuts a character, up to a stop text."""
    detokenizer, stops = Detokenizer(model.tokenizer, request.rendered), _Stops(request.stop)
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
                reason = "stop" if stops.found else reason
                yield End(reason, n_tokens, n_cached, stops.found)
                return
            n_tokens += 1
            token = _token(words, stops.push(detokenizer.push(int(words[0]))))
            yield token
            if stops.found:
                yield End("stop", n_tokens, n_cached, stops.found)
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
        self.found: str | None = None

    def push(self, text: str) -> str:
        """What can be told now."""
        if not self._stops:
            return text
        self._held += text
        places = [(at, it) for it in self._stops if (at := self._held.find(it)) >= 0]
        if places:
            at, self.found = min(places)
            return self._held[:at]
        keep = max(_overlap(self._held, stop) for stop in self._stops)
        told = self._held[: len(self._held) - keep]
        self._held = self._held[len(told) :]
        return told

    def finish(self, text: str) -> str:
        """What was held back, at the end."""
        return self.push(text) + ("" if self.found is not None else self._held)


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of the text begin the stop text."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0


def _written(number: float) -> float:
    """A number of a request that is not negative, as the guest reads it."""
    return max(float(number), _LEAST) if number > 0 else float(number)
