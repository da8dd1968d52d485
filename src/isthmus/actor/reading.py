"""An answer of a model while a guest samples it: text for the user, thoughts, calls of tools."""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from isthmus.errors import GrammarError, IsthmusError, ModelUnsupported, SnapshotInvalid
from isthmus.model import Detokenizer, Model
from isthmus.model.checks import Check, nothing
from isthmus.model.forms import (
    Arguments,
    CallBegins,
    CallEnds,
    Event,
    Form,
    Reasoning,
    SchemaCheck,
    Text,
)
from isthmus.units import MIB

MAX_NBYTES = 4 * MIB
"""Bytes of the longest answer."""
_TOKEN_NBYTES = 16
"""Bytes that a token counts as at least: its text is an object of its own."""


@dataclass
class Call:
    """One call in an answer."""

    name: str
    id: str = ""
    arguments: list[str] = field(default_factory=list)
    whole: bool = False

    @property
    def text(self) -> str:
        """Its arguments, as JSON."""
        return "".join(self.arguments)


@dataclass(frozen=True)
class ReadState:
    """How far an answer was read: from its tokens all of it is found again."""

    model: str
    """The name under which the actor was given its model."""
    tools: bytes
    """Those that the model was told of, JSON."""
    in_thought: bool
    forced: bool
    tokens: array[int]
    pending: bytes
    ended: bool
    ids: tuple[str, ...]
    """Of the calls, if it has ended."""


class ReadAnswer:
    """See the module. Owns nothing."""

    def __init__(
        self,
        model: Model,
        tools: Sequence[Mapping[str, Any]],
        *,
        in_thought: bool,
        forced: bool,
        name: str = "",
    ) -> None:
        """`tools` are those that the model was told of; `in_thought`: the prompt has opened a
        thought; `forced`: the answer follows `grammar`; `name`: the actor's for the model."""
        self._tools = tools
        self._in_thought, self._forced, self._name = in_thought, forced, name
        self._tokens = array("i")
        self._form: Form = model.form(with_tools=bool(tools))
        self._controls = model.controls(self._form)
        self._detokenizer = Detokenizer(model.tokenizer, self._controls.values())
        self._model = model
        self._parser = self._form.parser(tools, in_thought=in_thought, forced=forced)
        self._said: list[str] = []
        self._thought: list[str] = []
        self._calls: dict[int, Call] = {}
        self.pending = bytearray()
        """Text that became known and was not read yet, as UTF-8."""
        self.nbytes = 0
        """Bytes that all of it counts as, calls and thoughts included."""
        self.ended = False

    def state(self) -> ReadState:
        """How far it is now."""
        return ReadState(
            self._name,
            json.dumps(list(self._tools)).encode(),
            self._in_thought,
            self._forced,
            self._tokens[:],
            bytes(self.pending),
            self.ended,
            tuple(it.id for it in self.calls) if self.ended else (),
        )

    @staticmethod
    def resumed(model: Model, state: ReadState) -> ReadAnswer:
        """One that is as far as a state says. SnapshotInvalid if that cannot be."""
        try:
            tools = json.loads(state.tools)
            told = {"in_thought": state.in_thought, "forced": state.forced}
            answer = ReadAnswer(model, tools, name=state.model, **told)
            for token in state.tokens:
                answer.feed(token)
            if state.ended:
                answer.end()
        except (IsthmusError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise SnapshotInvalid(f"the answer of the snapshot cannot be read: {error}") from None
        answer.pending[:] = state.pending
        for call, call_id in zip(answer.calls, state.ids, strict=False):
            call.id = call_id
        return answer

    @property
    def has_tools(self) -> bool:
        """Whether the model was told of any tool."""
        return bool(self._tools)

    def grammar(self, check: Check = nothing) -> str:
        """The source of a Lark grammar of one call of a tool, after a thought if the model thinks.

        ModelUnsupported if a tool's schema cannot be followed.
        """
        try:
            _, source = self._form.grammar(
                self._tools,
                in_thought=self._in_thought,
                may_think=True,
                ids=self._controls,
                check=SchemaCheck(check=check),
            )
        except GrammarError as error:
            raise ModelUnsupported(f"the arguments of a tool cannot be forced: {error}") from None
        return source

    def feed(self, token: int) -> int:
        """Takes the next token; returns how many bytes of text are pending."""
        self._model.require_token(token)
        self._tokens.append(token)
        self._take(self._detokenizer.push(token))
        return len(self.pending)

    def end(self) -> int:
        """Ends the answer; returns how many whole calls it has."""
        if not self.ended:
            self._take(self._detokenizer.finish())
            for event in self._parser.end():
                self._note(event)
            self.ended = True
        return len(self.calls)

    @property
    def calls(self) -> list[Call]:
        """The calls that are whole, in their order."""
        return [it for it in self._calls.values() if it.whole]

    @property
    def cut_off(self) -> list[str]:
        """Names of tools whose calls have no end."""
        return [it.name for it in self._calls.values() if not it.whole]

    def message(self) -> bytes:
        """The whole answer as a message of a conversation, in JSON."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._said)}
        if self._thought:
            message["reasoning_content"] = "".join(self._thought)
        if calls := self.calls:
            message["tool_calls"] = [
                {
                    "id": it.id,
                    "type": "function",
                    "function": {"name": it.name, "arguments": it.text},
                }
                for it in calls
            ]
        return json.dumps(message).encode()

    def _take(self, text: str) -> None:
        self.nbytes += max(len(text.encode()), _TOKEN_NBYTES)
        for event in self._parser.feed(text):
            self._note(event)

    def _note(self, event: Event) -> None:
        match event:
            case Text(text):
                self._said.append(text)
                self.pending += text.encode()
            case Reasoning(text):
                self._thought.append(text)
            case CallBegins(index, name):
                self._calls[index] = Call(name)
            case Arguments(index, text):
                self._calls[index].arguments.append(text)
            case CallEnds(index, whole):
                self._calls[index].whole = whole
