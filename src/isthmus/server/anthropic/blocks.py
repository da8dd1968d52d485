"""From what a parser makes of an answer to blocks of a message, whole and as events.

::

    Reasoning ─► thinking ─┐
    Text ──────► text ─────┼─► one after another: the next begins when the last has ended
    CallBegins ► tool_use ─┘
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from isthmus.model.forms import Arguments, CallBegins, CallEnds, Event, Reasoning, Text
from isthmus.server.anthropic.replies import (
    AnsweredBlock,
    AnsweredText,
    AnsweredThinking,
    AnsweredToolUse,
    BlockEvent,
    Delta,
)
from isthmus.server.anthropic.signature import signature_of
from isthmus.server.generation.called import arguments_of
from isthmus.server.http.ids import random_id


class _Open:
    """A block that has begun and not ended."""

    def __init__(self, block: AnsweredBlock) -> None:
        self.block = block
        self.pieces: list[str] = []


class Blocks:
    """See the module. The content of one answer; `hides_thoughts` leaves thoughts empty."""

    def __init__(self, *, hides_thoughts: bool = False) -> None:
        self._hides_thoughts = hides_thoughts
        self._content: list[AnsweredBlock] = []
        self._open: _Open | None = None
        self._blank: list[str] = []
        """White space that is told only if a text follows it: no block is blank."""

    @property
    def content(self) -> list[AnsweredBlock]:
        """All blocks that have ended."""
        return self._content

    @property
    def is_thinking(self) -> bool:
        """Whether the answer is in a thought."""
        return self._is_open(AnsweredThinking)

    @property
    def calls(self) -> bool:
        """Whether a tool has been called."""
        return any(isinstance(it, AnsweredToolUse) for it in self._content)

    def take(self, events: Iterable[Event]) -> list[BlockEvent]:
        """What an answer's events tell, in the order of the API."""
        told: list[BlockEvent] = []
        for event in events:
            if isinstance(event, Text):
                told += self._add_text(event.text)
            elif isinstance(event, Reasoning):
                told += self._add_thought(event.text)
            elif isinstance(event, CallBegins):
                told += self._begin_call(event.name)
            elif isinstance(event, Arguments):
                told += self._add(AnsweredToolUse, event.text, _input_delta(event.text))
            elif isinstance(event, CallEnds):
                told += self.finish()
        return told

    def finish(self) -> list[BlockEvent]:
        """The end of the block that is open, if one is."""
        self._blank.clear()
        ended, self._open = self._open, None
        if ended is None:
            return []
        index, told = len(self._content), list[BlockEvent]()
        self._content.append(self._whole(ended.block, "".join(ended.pieces)))
        last = self._content[-1]
        if isinstance(last, AnsweredThinking):
            told.append(_delta(index, {"type": "signature_delta", "signature": last.signature}))
        return [*told, {"type": "content_block_stop", "index": index}]

    # ------------------------------------------------------------------ parts

    def _add_text(self, text: str) -> list[BlockEvent]:
        if not self._is_open(AnsweredText):
            self._blank.append(text)
            if text.isspace():
                return []
            text = "".join(self._blank)
        begun = self._begin(AnsweredText(""))
        return begun + self._add(AnsweredText, text, {"type": "text_delta", "text": text})

    def _add_thought(self, text: str) -> list[BlockEvent]:
        self._blank.clear()
        begun = self._begin(AnsweredThinking("", ""))
        delta: Delta = {"type": "thinking_delta", "thinking": text}
        return begun + self._add(AnsweredThinking, text, None if self._hides_thoughts else delta)

    def _begin_call(self, name: str) -> list[BlockEvent]:
        told = self.finish()
        return told + self._begin(AnsweredToolUse(random_id("toolu_"), name, {}))

    def _is_open(self, kind: type[AnsweredBlock]) -> bool:
        return self._open is not None and isinstance(self._open.block, kind)

    def _begin(self, block: AnsweredBlock) -> list[BlockEvent]:
        """The end of another block and the beginning of this one, unless its kind is open."""
        if self._is_open(type(block)):
            return []
        told = self.finish()
        self._open = _Open(block)
        index = len(self._content)
        return [*told, {"type": "content_block_start", "index": index, "content_block": block}]

    def _add(self, kind: type[AnsweredBlock], text: str, delta: Delta | None) -> list[BlockEvent]:
        """More of the block that is open; nothing if that is another one."""
        if self._open is None or not self._is_open(kind):
            return []
        self._open.pieces.append(text)
        return [] if delta is None else [_delta(len(self._content), delta)]

    def _whole(self, block: AnsweredBlock, text: str) -> AnsweredBlock:
        if isinstance(block, AnsweredText):
            return AnsweredText(text)
        if isinstance(block, AnsweredThinking):
            hidden = self._hides_thoughts
            return AnsweredThinking("" if hidden else text, signature_of(text, hidden=hidden))
        return AnsweredToolUse(block.id, block.name, _input(text))


def _delta(index: int, delta: Delta) -> BlockEvent:
    return {"type": "content_block_delta", "index": index, "delta": delta}


def _input_delta(text: str) -> Delta:
    return {"type": "input_json_delta", "partial_json": text}


def _input(text: str) -> dict[str, Any]:
    """A call's input. Empty for one that was cut off, or cannot be told: half of a command is
    none."""
    return arguments_of(text) or {}
