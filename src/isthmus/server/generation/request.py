"""One answer by the guest `complete`: what it is asked, and its lines read as tokens."""

from __future__ import annotations

import math
import secrets
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha512

import numpy as np
import numpy.typing as npt

from isthmus.abi import Errno, GrammarKind
from isthmus.errors import ContextFull, GuestFailed, IsthmusError, SettingsError
from isthmus.model import Model
from isthmus.model.tokens.tokenizer import Detokenizer
from isthmus.server.generation.answering import Answer
from isthmus.server.generation.stops import Stops
from isthmus.server.generation.tokens import Place, Token
from isthmus.server.generation.wanted import Sampling
from isthmus.server.generation.words import Words

_MIN, _MAX = 1.2e-38, 1e38
"""The least and the greatest positive numbers that the guest reads: its numbers have 32 bits."""


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
    scores_prompt: bool = False
    """Whether the prompt's tokens are told before those of the answer, with their logprobs."""
    only_counts: bool = False
    """Whether the prompt is counted, and no answer made."""
    media: tuple[bytes, ...] = ()
    """Files of pictures and sounds; the prompt has `id_of` the number of each."""
    rendered: Collection[int] = ()
    """Control tokens that are told as text; all others are left out."""

    def known_by(self) -> npt.NDArray[np.int64]:
        """What prompts are compared by: token ids, and eight numbers for each file, which no other
        file has."""
        ids = np.array(self.prompt, np.int64)
        if not self.media:
            return ids
        files = [np.frombuffer(sha512(it).digest(), np.int64) for it in self.media]
        each = (files[-2 - it] if it < 0 else [it] for it in self.prompt)
        return np.concatenate([np.asarray(it, np.int64) for it in each])

    def message(self) -> bytes:
        """The request as the guest reads it.

        It always has a seed: a fork has its parent's random numbers.
        """
        kind, source = (0, b"")
        if self.grammar is not None:
            kind, source = self.grammar[0].value, self.grammar[1].encode()
        sampling, thought, files = self.sampling, self.thought, files_as_bytes(self.media)
        words = Words(
            max_tokens=self.max_tokens,
            temperature=_written(sampling.temperature),
            top_k=sampling.top_k,
            top_p=_written(sampling.top_p),
            min_p=_written(sampling.min_p),
            repeat_penalty=_written(sampling.repeat_penalty),
            repeat_last_n=sampling.repeat_last_n,
            presence_penalty=_written(sampling.presence_penalty),
            frequency_penalty=_written(sampling.frequency_penalty),
            seed=secrets.randbits(63) if sampling.seed is None else sampling.seed,
            logprobs=-1 if self.logprobs is None else self.logprobs,
            ignore_eos=int(sampling.ignore_eos),
            score_prompt=int(self.scores_prompt),
            count_prompt=int(self.only_counts),
            bias=",".join(f"{id_}:{_written(it):.9g}" for id_, it in sampling.bias.items()),
            grammar=kind,
            grammar_nbytes=len(source),
            media_nbytes=len(files),
            thinking=-1 if thought is None else thought.most,
            in_thought=int(thought is not None and thought.is_open),
            opens=_ids(thought.opens if thought is not None else ()),
            closes=_ids(thought.closes if thought is not None else ()),
            close=_ids(thought.close if thought is not None else ()),
        )
        return words.line() + ids_as_bytes(self.prompt) + files + source


def ids_as_bytes(ids: Sequence[int]) -> bytes:
    """Token ids as guests read them. A prompt may have 100,000."""
    return np.array(ids, "<i4").tobytes()


def files_as_bytes(files: Iterable[bytes]) -> bytes:
    """Files as guests read them: each with its length before it, filled up to four bytes."""
    each = (len(it).to_bytes(4, "little") + it + bytes(-len(it) % 4) for it in files)
    return b"".join(each)


def _ids(tokens: Iterable[int]) -> str:
    return ",".join(map(str, tokens))


@dataclass(frozen=True)
class Began:
    """What is known of a prompt before its answer."""

    n_cached: int
    """Tokens that were not computed again."""
    n_media: int = 0
    """Tokens that pictures and sounds take, beside the one id that each has in the prompt."""


@dataclass(frozen=True)
class End:
    """How an answer ended."""

    reason: str
    """`stop` or `length`."""
    n_tokens: int
    n_cached: int
    """As `Began` has it."""
    stop: str | None = None
    """The text of `Request.stop` that ended it."""
    n_media: int = 0
    """As `Began` has it."""


_REFUSALS = {
    Errno.EINVAL: "it is damaged, or has a shape that the model does not take",
    Errno.ENOTSUP: "the model does not take it, or it is none of PNG, JPEG, WebP and WAV",
    Errno.ELIMIT: "it is larger than the server allows",
    Errno.ENOMEM: "there is no memory for it",
}


def _refusal(number: int, errno: Errno) -> IsthmusError:
    """Why a file of the prompt was not taken."""
    which = f"picture or sound {number + 1} of the conversation"
    if errno == Errno.ECONTEXT:
        return ContextFull(f"{which} takes more tokens than the context has room for")
    return SettingsError(f"{which} cannot be read: {_REFUSALS.get(errno, errno.name)}")


async def read_tokens(
    model: Model, answer: Answer, request: Request
) -> AsyncIterator[Began | Token | End]:
    """The guest's lines as tokens, with text that never cuts a character, up to a stop text.

    A token is held back while it may belong to a stop text, and dropped if it does. Raises
    GuestFailed if the guest ended before its answer did.
    """
    detokenizer, stops = Detokenizer(model.tokenizer, request.rendered), Stops(request.stop)
    n_tokens, began = 0, Began(0)
    ending: list[Token] = []
    async for words in _lines(answer):
        if words[0] == Place.PROMPT.value:
            yield _token(words[1:], place=Place.PROMPT)
            continue
        if words[0] == Place.END.value:
            ending = [_token(words[1:], place=Place.END)]
            continue
        if words[0] == "refused":
            raise _refusal(int(words[1]), Errno(int(words[2])))
        if words[0] == "began":
            began = Began(int(words[1]), int(words[2]) - len(request.prompt))
            yield began
            continue
        if words[0] == "end":
            for token in stops.finish(detokenizer.finish(), ending):
                yield token
            reason = "length" if words[1] == "length" else "stop"
            reason = "stop" if stops.found else reason
            yield End(reason, n_tokens, began.n_cached, stops.found, began.n_media)
            return
        n_tokens += 1
        for token in stops.push(_token(words, detokenizer.push(int(words[0])))):
            yield token
        if stops.found:
            yield End("stop", n_tokens, began.n_cached, stops.found, began.n_media)
            return
    raise GuestFailed(0)


async def _lines(answer: Answer) -> AsyncIterator[list[str]]:
    """The words of each line that the guest emits."""
    rest = ""
    async for piece in answer:
        *lines, rest = (rest + piece).split("\n")
        for line in lines:
            yield line.split(" ")


def _token(words: list[str], text: str = "", *, place: Place = Place.ANSWER) -> Token:
    if len(words) == 1:
        return Token(int(words[0]), text)
    pairs = (word.split(":") for word in words[2:])
    top = tuple((int(a), _number(b)) for a, b in pairs)
    return Token(int(words[0]), text, _number(words[1]), top, place=place)


def _number(text: str) -> float | None:
    """A number of the guest, which writes `null` for one that is not finite."""
    return None if text == "null" else float(text)


def _written(number: float) -> float:
    """A number of a request, as the guest reads it."""
    size = min(max(abs(number), _MIN), _MAX) if number else 0.0
    return math.copysign(size, number)
