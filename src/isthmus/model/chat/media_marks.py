"""Where pictures and sounds are in a conversation, while a chat template writes it down.

A part of the type `media` has the number of a file. The template gets a mark in its place: the
number between two characters that no text of the conversation has. What the template makes of the
conversation is cut at the marks, and each of them becomes an id that no token has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from isthmus.errors import TemplateError
from isthmus.model.chat.chat_guard import texts_of, unused

MEDIA = "media"
"""The type of such parts; `number` is the file's, from 0 on."""


def id_of(number: int) -> int:
    """What stands for a file among token ids: -2 for the first one."""
    return -2 - number


class MediaMarks:
    """The marks of one conversation."""

    def __init__(self, messages: Sequence[Mapping[str, Any]], other_texts: Sequence[str]) -> None:
        """`other_texts`: what else the template sees. TokenError if no character is left."""
        self._messages = messages
        parts = [part for it in messages for part in _parts(it)]
        self.numbers = [part["number"] for part in parts if _is_media(part)]
        """The files of the conversation, in its order."""
        self._mark = unused([*other_texts, *texts_of(list(messages))]) if self.numbers else ""

    def marked(self) -> Sequence[Mapping[str, Any]]:
        """The messages, with marks in place of files."""
        return [self._with_marks(it) for it in self._messages] if self.numbers else self._messages

    def cut(self, text: str) -> Iterator[str | int]:
        """What a template wrote: texts, and numbers of files between them.

        TemplateError if it left a file out, or wrote one twice.
        """
        pieces = re.split(f"{self._mark}(\\d+){self._mark}", text)
        if sorted(map(int, pieces[1::2])) != sorted(self.numbers):
            raise TemplateError(
                "the model's chat template leaves out a picture or a sound of the conversation, or "
                "shows one twice"
            )
        for i, piece in enumerate(pieces):
            if i % 2:
                yield int(piece)
            elif piece:
                yield piece

    def _with_marks(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        if not any(map(_is_media, _parts(message))):
            return message
        return {**message, "content": [self._part(it) for it in _parts(message)]}

    def _part(self, part: Any) -> Any:
        if not _is_media(part):
            return part
        return {"type": "text", "text": f"{self._mark}{part['number']}{self._mark}"}


def _parts(message: Mapping[str, Any]) -> Sequence[Any]:
    content = message.get("content") if isinstance(message, Mapping) else None
    return content if isinstance(content, list | tuple) else ()


def _is_media(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == MEDIA
