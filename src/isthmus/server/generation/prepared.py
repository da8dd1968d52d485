"""An answer that can be computed, and what is told of it while it comes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

from isthmus.model.forms import Event, Form, Parser, Reasoning, Text
from isthmus.server.generation.completer import Completer
from isthmus.server.generation.request import Began, End, Request
from isthmus.server.generation.tokens import Place, Token
from isthmus.server.generation.wanted import ToolChoice, Wanted

_SEEDS = 2**64


@dataclass(frozen=True)
class Step:
    """One token of an answer, and what became known with it."""

    token: Token | None
    """None for what becomes known at the end."""
    events: tuple[Event, ...]
    began: Began | None = None
    """What is known of the prompt; the first step of an answer has it."""

    @property
    def is_thought(self) -> bool:
        """Whether its token is one of a thought."""
        return self.token is not None and any(isinstance(it, Reasoning) for it in self.events)


@dataclass(frozen=True)
class Reading:
    """How an answer's text is read: in which form, and what the model was told."""

    form: Form
    wanted: Wanted
    in_thought: bool
    """Whether the prompt ends inside a thought."""


@dataclass(frozen=True)
class Prepared:
    """See the module."""

    model: str
    """The name that the request gave."""
    completer: Completer
    request: Request
    reading: Reading | None = None
    """None if all of the answer is text."""
    warnings: tuple[str, ...] = ()
    """Sentences about what the model does not get of the conversation, and what of a JSON schema is
    not enforced, for whoever asked."""

    def numbered(self, index: int) -> Prepared:
        """This answer as one of several choices: if there is a seed, each has another one."""
        sampling = self.request.sampling
        if not index or sampling.seed is None:
            return self
        seed = (sampling.seed + index + _SEEDS // 2) % _SEEDS - _SEEDS // 2
        request = replace(self.request, sampling=replace(sampling, seed=seed))
        return replace(self, request=request)

    def steps(self) -> AsyncGenerator[Step | End, None]:
        """The answer, by one of the agents that are kept for requests. Raises IsthmusError."""
        return self.steps_of(self.completer.complete(self.request))

    async def steps_of(
        self, tokens: AsyncGenerator[Began | Token | End, None]
    ) -> AsyncGenerator[Step | End, None]:
        """The answer that has these tokens."""
        parser = None if self.reading is None else _parser(self.reading)
        began: Began | None = None
        async with aclosing(tokens) as items:
            async for item in items:
                if isinstance(item, Began):
                    began = item
                    continue
                if isinstance(item, Token):
                    if item.place is Place.END and parser is not None:
                        continue  # no API tells it of a conversation
                    text = item.text
                    plain = (Text(text),) if text else ()
                    events = plain if parser is None else tuple(parser.feed(text))
                    yield Step(item, events, began)
                    began = None
                    continue
                rest = () if parser is None else tuple(parser.end())
                if rest:
                    yield Step(None, rest)
                yield item


def _parser(reading: Reading) -> Parser:
    wanted = reading.wanted
    return reading.form.parser(
        [it.as_dict() for it in wanted.offered],
        in_thought=reading.in_thought,
        forced=wanted.tool_choice is ToolChoice.REQUIRED,
    )
