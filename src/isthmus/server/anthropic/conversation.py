"""A conversation of Anthropic's API with the keys of OpenAI's chat completions: pure functions.

=========================  =========================================================================
there                      here
=========================  =========================================================================
`system`                   a message of `system` at the beginning
text blocks                one text; a line break between two of them if there is none
pictures                   parts of the type `media`, among texts
text blocks of an answer   one text, as the model wrote it
`tool_use`                 `tool_calls`, with the input as JSON
`thinking`                 `reasoning_content`
`tool_result`              a message of `tool`, before the texts that came with it
messages of one role       one message
a last message of          no message: the beginning of the answer
`assistant`
=========================  =========================================================================
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from isthmus.errors import SettingsError
from isthmus.server.anthropic.requests import (
    Block,
    ImageBlock,
    InputMessage,
    TextBlock,
    ThinkingBlock,
    ToolReferenceBlock,
    ToolResultBlock,
    ToolUseBlock,
    UrlSource,
)
from isthmus.server.anthropic.signature import thought_of
from isthmus.server.generation.media import MediaFiles, RemoteFile
from isthmus.server.http.errors import HttpError

_BILLING = re.compile(r"\s*x-anthropic-billing-header:[^\n]*(?:\n+|\Z)")
"""A line with a checksum that some clients begin their system prompt with. It is another one in
each request, so nothing after it would be remembered."""


@dataclass(frozen=True)
class Conversation:
    """See the module."""

    messages: tuple[dict[str, Any], ...]
    prefill: str = ""
    """Text that the answer goes on from."""
    media: tuple[bytes, ...] = ()
    """Files of pictures."""
    remote: tuple[RemoteFile, ...] = ()
    """Those that are still to be fetched."""


def conversation_of(
    system: str | Sequence[TextBlock] | None, messages: Sequence[InputMessage]
) -> Conversation:
    """The conversation of a request. HttpError 400 names the part that has no place in it."""
    turns = _Turns()
    turns.add_system(_instructions(system or ()))
    for index, message in enumerate(messages):
        turns.add(message, f"messages[{index}]")
    return turns.finish()


@dataclass
class _Turn:
    """A message that is being made, in pieces: joined one by one they would be copied each time."""

    role: str
    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)
    parts: list[dict[str, Any]] = field(default_factory=list)
    """Of a turn with pictures: those, and the texts before each."""

    def add_picture(self, part: dict[str, Any]) -> None:
        """A picture after the texts that there are."""
        self.parts += [*self._text_part(), part]
        self.texts = []

    def as_dict(self) -> dict[str, Any]:
        """The message."""
        content: Any = joined(self.texts)
        if self.role == "assistant":
            content = "".join(self.texts)
        elif self.parts:
            content = [*self.parts, *self._text_part()]
        found = {"role": self.role, "content": content, **self.more}
        if self.thoughts:
            found["reasoning_content"] = "".join(self.thoughts)
        if self.calls:
            found["tool_calls"] = self.calls
        return found

    def _text_part(self) -> list[dict[str, Any]]:
        return [{"type": "text", "text": joined(self.texts)}] if any(self.texts) else []


class _Turns:
    """Messages that are made one after another."""

    def __init__(self) -> None:
        self._made: list[_Turn] = []
        self._files = MediaFiles()
        self._names: dict[str, str] = {}
        """The tool that each call has called, by the call's id."""

    def add_system(self, texts: Sequence[str]) -> None:
        """Instructions, at any place."""
        if any(texts):
            self._turn("system").texts += texts

    def add(self, message: InputMessage, where: str) -> None:
        """One message of the request, which stands at `where` in it."""
        content = message.content
        blocks = [TextBlock(text=content)] if isinstance(content, str) else content
        for index, block in enumerate(blocks):
            _require_place(message.role, block, f"{where}.content[{index}]")
        if message.role == "system":
            self.add_system(_instructions([it for it in blocks if isinstance(it, TextBlock)]))
        elif message.role == "user":
            self._add_user(blocks, where)
        else:
            self._add_assistant(blocks, where)

    def finish(self) -> Conversation:
        """The conversation; a last message of the assistant's is the beginning of the answer."""
        prefill = ""
        if self._made and self._made[-1].role == "assistant":
            last = self._made.pop()
            if last.calls or last.thoughts:
                said = "the last message has calls or thoughts: only text can be continued"
                raise HttpError(400, said, param="messages")
            prefill = "".join(last.texts)
        messages = tuple(it.as_dict() for it in self._made)
        return Conversation(messages, prefill, self._files.files, self._files.remote)

    def _turn(self, role: str) -> _Turn:
        """The last message if it has that role, or a new one."""
        if not self._made or self._made[-1].role != role:
            self._made.append(_Turn(role))
        return self._made[-1]

    def _add_user(self, blocks: Sequence[Block], where: str) -> None:
        for index, block in enumerate(blocks):
            if isinstance(block, ToolResultBlock):
                self._add_result(block, f"{where}.content[{index}].tool_use_id")
        if not blocks:
            self._turn("user")
        for index, block in enumerate(blocks):
            if isinstance(block, TextBlock):
                self._turn("user").texts.append(block.text)
            elif isinstance(block, ImageBlock):
                self._turn("user").add_picture(self._picture(block, f"{where}.content[{index}]"))

    def _picture(self, block: ImageBlock, where: str) -> dict[str, Any]:
        if isinstance(block.source, UrlSource):
            return self._files.add_uri(block.source.url, f"{where}.source.url")
        return self._files.add_base64(block.source.data, f"{where}.source.data")

    def _add_result(self, block: ToolResultBlock, where: str) -> None:
        name = self._names.get(block.tool_use_id)
        if name is None:
            said = f"no tool_use before has the id {block.tool_use_id!r}"
            raise HttpError(400, said, param=where)
        text = _result(block.content)
        made = _Turn("tool", [f"Error: {text}" if block.is_error else text])
        made.more = {"tool_call_id": block.tool_use_id, "name": name}
        self._made.append(made)

    def _add_assistant(self, blocks: Sequence[Block], where: str) -> None:
        turn = self._turn("assistant")
        for index, block in enumerate(blocks):
            if isinstance(block, TextBlock):
                turn.texts.append(block.text)
            elif isinstance(block, ThinkingBlock):
                turn.thoughts.append(_thought(block, f"{where}.content[{index}]"))
            elif isinstance(block, ToolUseBlock):
                self._names[block.id] = block.name
                turn.calls.append(_call(block))


def _require_place(role: str, block: Block, where: str) -> None:
    """HttpError 400 for a block that messages of that role do not have."""
    of_user = isinstance(block, ToolResultBlock | ImageBlock)
    fits = isinstance(block, TextBlock) or (role != "system" and of_user == (role == "user"))
    if not fits:
        kind = block.__struct_config__.tag
        raise HttpError(400, f"a message of {role} has no block of type {kind}", param=where)


def _instructions(system: str | Sequence[TextBlock]) -> list[str]:
    """Texts of a system prompt without the line that is another one in each request."""
    texts = [system] if isinstance(system, str) else [it.text for it in system]
    return [_BILLING.sub("", text, count=1) if _BILLING.match(text) else text for text in texts]


def joined(texts: Iterable[str]) -> str:
    """Texts that are not empty, with a line break between two of them if there is none."""
    return "".join(_with_breaks(text for text in texts if text))


def _with_breaks(texts: Iterable[str]) -> Iterator[str]:
    before = "\n"
    for text in texts:
        if not before.endswith("\n") and not text.startswith("\n"):
            yield "\n"
        yield text
        before = text


def _result(content: str | Sequence[TextBlock | ToolReferenceBlock] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return joined(it.text if isinstance(it, TextBlock) else it.tool_name for it in content)


def _thought(block: ThinkingBlock, where: str) -> str:
    try:
        return thought_of(block.thinking, block.signature)
    except SettingsError as error:
        raise HttpError(400, str(error), param=where) from None


def _call(block: ToolUseBlock) -> dict[str, Any]:
    arguments = json.dumps(block.input, ensure_ascii=False)
    function = {"name": block.name, "arguments": arguments}
    return {"id": block.id, "type": "function", "function": function}
