"""Items as the turns that chat templates know.

====================================  ============================================================
items                                 turn
====================================  ============================================================
a message of user, system, developer  one of its own
reasoning, messages of the assistant  all that come one after another are one turn of the assistant
and calls
output of a call                      one of the tool
additional_tools, item_reference      none
====================================  ============================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from isthmus.server.generation.media import MediaFiles
from isthmus.server.http.errors import HttpError
from isthmus.server.responses.items import Item, is_media, text_of, texts_of
from isthmus.server.responses.media import add_media
from isthmus.server.responses.sealing import unseal
from isthmus.server.responses.tools import arguments_of, flat_name

Message = dict[str, Any]
_BETWEEN = "\n\n"
"""What is put between two texts that become one."""


def messages_of(
    items: Iterable[Item], instructions: str | None = None, files: MediaFiles | None = None
) -> list[Message]:
    """The turns of a conversation, whose pictures and sounds join `files`.

    HttpError 400 for the output of a call that was never made, and for what is no file.
    """
    turns = _Turns(MediaFiles() if files is None else files)
    if instructions is not None:
        turns.messages.append({"role": "system", "content": instructions})
    for item in items:
        turns.add(item)
    turns.end_answer()
    return turns.messages


class _Turns:
    """Turns that are being made."""

    def __init__(self, files: MediaFiles) -> None:
        self.messages: list[Message] = []
        self._files = files
        self._answer: _Answer | None = None
        self._called: dict[str, str] = {}
        """Names of the functions that were called, by the ids of the calls."""

    def add(self, item: Item) -> None:
        """One more item."""
        kind = item["type"]
        if kind == "message" and item["role"] != "assistant":
            self.end_answer()
            self.messages.append({"role": item["role"], "content": self._content(item["content"])})
        elif kind.endswith("_output"):
            self.end_answer()
            self._add_output(item)
        elif kind not in ("additional_tools", "item_reference"):
            self._answer = self._answer or _Answer()
            self._answer.add(item)
            if kind.endswith("_call"):
                self._called[item["call_id"]] = _called_name(item)

    def end_answer(self) -> None:
        """What follows is no part of the answer before."""
        if self._answer is not None:
            self.messages += self._answer.message()
        self._answer = None

    def _content(self, parts: Sequence[Item]) -> str | list[Message]:
        """The content of a turn: parts, unless it is one text."""
        if len(parts) == 1 and not is_media(parts[0]):
            return texts_of(parts)[0]
        return [
            add_media(self._files, it)
            if is_media(it)
            else {"type": "text", "text": texts_of([it])[0]}
            for it in parts
        ]

    def _add_output(self, item: Item) -> None:
        call_id = item["call_id"]
        if call_id not in self._called:
            said = f"there is no call {call_id[:80]!r} before its output"
            raise HttpError(400, said, code="call_not_found", param="input")
        name = self._called[call_id]
        content = text_of(item["output"])
        self.messages.append(
            {"role": "tool", "tool_call_id": call_id, "name": name, "content": content}
        )


class _Answer:
    """What the assistant said, thought and called, until somebody else is next."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[Message] = []

    def add(self, item: Item) -> None:
        """One more item of it."""
        if item["type"] == "message":
            self._texts.append(text_of(item["content"]))
        elif item["type"] == "reasoning":
            self._thoughts.append(thought_of(item))
        else:
            is_custom = item["type"] == "custom_tool_call"
            arguments = arguments_of(item["input"]) if is_custom else item["arguments"]
            function = {"name": _called_name(item), "arguments": arguments}
            self._calls.append({"id": item["call_id"], "type": "function", "function": function})

    def message(self) -> list[Message]:
        """The turn; none if there is nothing in it."""
        texts, thoughts = list(filter(None, self._texts)), list(filter(None, self._thoughts))
        if not texts and not thoughts and not self._calls and not self._texts:
            return []
        found: Message = {"role": "assistant", "content": _BETWEEN.join(texts)}
        if thoughts:
            found["reasoning_content"] = _BETWEEN.join(thoughts)
        if self._calls:
            found["tool_calls"] = self._calls
        return [found]


def thought_of(item: Mapping[str, Any]) -> str:
    """The text of a reasoning item. HttpError 400 if it is sealed by somebody else, and no text."""
    if item.get("content"):
        return "".join(texts_of(item["content"]))
    summary = "".join(texts_of(item.get("summary") or ()))
    sealed = item.get("encrypted_content")
    thought = unseal(sealed) if sealed is not None else summary
    if thought is None and not summary:
        said = "encrypted_content is of another server: leave the reasoning item out"
        raise HttpError(400, said, code="invalid_encrypted_content", param="input")
    return summary if thought is None else thought


def _called_name(item: Item) -> str:
    return flat_name(item["name"], item.get("namespace"))
