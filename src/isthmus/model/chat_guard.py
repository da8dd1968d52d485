"""What users say, written so that a chat template cannot make control tokens of it.

A control token in a content, as `<|im_end|>`, gets a seam inside: a character that is in none of
the texts. The template writes it where the content goes, trimmed, split or quoted as JSON, and the
tokenizer reads no control token across it and takes it away. So the model sees the same text, and
only what the template itself writes gives control tokens. What the template might complete to one,
as `im_end` in `<|{{ role }}|>`, gets a seam at its ends; all else stays as it is. Words inside of
calls and tools, which templates compare (`type == 'function'`), stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from isthmus.errors import TokenError
from isthmus.model.specials import Specials

ROLES = frozenset(("system", "developer", "user", "assistant", "tool", "function"))
"""Those that a template may write into control tokens, as `<|user|>`; others are guarded."""
_SEAMS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
"""Characters that Unicode keeps for uses like this."""


class ChatGuard:
    """Writes seams into the parts of conversations, for one vocabulary."""

    def __init__(self, controls: Specials) -> None:
        self._controls = controls

    def guarded(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        template: str,
        check: Callable[[], None],
    ) -> tuple[list[dict[str, Any]], list[Any] | None, str]:
        """Messages and tools with seams in them, and the character that those are.

        `template` is the template's source. `check` is called for each message, and may raise.
        TokenError for texts that have half a character, or all characters that seams can be.
        """
        seam = _unused((template, *_texts([messages, tools])))
        made = []
        for message in messages:
            check()
            made.append({name: self._field(name, it, seam) for name, it in message.items()})
        return made, None if tools is None else [self._value(it, seam) for it in tools], seam

    def _field(self, name: str, value: Any, seam: str) -> Any:
        if not isinstance(value, str):
            return self._value(value, seam)
        if name == "role" and value in ROLES:
            return value
        data = value.encode(errors="replace")
        if data and any(data in it for it in self._controls.texts):  # as `s` in `<{{ name }}>`
            return seam + self._text(value, seam)
        return self._text(value, seam)

    def _value(self, value: Any, seam: str) -> Any:
        if isinstance(value, str):
            return self._text(value, seam)
        if isinstance(value, Mapping):
            return {self._value(key, seam): self._value(it, seam) for key, it in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._value(it, seam) for it in value]
        return value

    def _text(self, text: str, seam: str) -> str:
        core = text.strip()
        try:
            data = core.encode()
        except UnicodeEncodeError:
            raise TokenError(
                "a text of the conversation has half a character, like \\ud800: leave it out"
            ) from None
        if not data:
            return text
        made = seam.join(part.decode() for part in self._controls.parted(data))
        if any(data[:n] in self._tails for n in range(1, min(len(data), self._longest) + 1)):
            made = seam + made
        if any(data[-n:] in self._heads for n in range(1, min(len(data), self._longest) + 1)):
            made += seam
        if made == core:
            return text
        before = len(text) - len(text.lstrip())
        return text[:before] + made + text[before + len(core) :]

    @cached_property
    def _longest(self) -> int:
        return max((len(it) - 1 for it in self._controls.texts), default=0)

    @cached_property
    def _heads(self) -> frozenset[bytes]:
        """What control tokens begin with."""
        return frozenset(it[:n] for it in self._controls.texts for n in range(1, len(it)))

    @cached_property
    def _tails(self) -> frozenset[bytes]:
        """What control tokens end with."""
        return frozenset(it[n:] for it in self._controls.texts for n in range(1, len(it)))


def _unused(texts: Iterable[str]) -> str:
    left = list(_SEAMS)
    for text in texts:
        left = [it for it in left if it not in text] if not text.isascii() else left
    if not left:
        raise TokenError("the conversation has all of U+FDD0 to U+FDEF, which are no characters")
    return left[0]


def _texts(value: Any) -> Iterator[str]:
    """All texts inside of what JSON can hold."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, it in value.items():
            yield from _texts(key)
            yield from _texts(it)
    elif isinstance(value, (list, tuple)):
        for it in value:
            yield from _texts(it)
