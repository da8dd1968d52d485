"""What users say, written so that a chat template cannot make control tokens of it.

A control token in a content, as `<|im_end|>`, gets a seam inside: a character that is in none of
the texts. The template writes it where the content goes, trimmed, split or quoted as JSON, and the
tokenizer reads no control token across it and takes it away. So the model sees the same text, and
only what the template itself writes gives control tokens. What the template might complete to one,
as `im_end` in `<|{{ role }}|>`, gets a seam at its ends; all else stays as it is.

Templates compare some texts with their own words: `type == 'function'` in a call, or
`reasoning_effort == 'low'`. So words that the template itself has, but for roles, stay as they are
inside of calls, tools and parts. So do roles of messages that are known here, and variables that
are what the template compares them with.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from isthmus.errors import TokenError
from isthmus.model.chat.chat_template import ChatTemplate
from isthmus.model.chat.conversation import Conversation
from isthmus.model.tokens.specials import Specials

ROLES = frozenset(("system", "developer", "user", "assistant", "tool", "function"))
"""Those that a template may write into control tokens, as `<|user|>`; others are guarded."""
_SEAMS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
"""Characters that Unicode keeps for uses like this."""


class ChatGuard:
    """Writes seams into the parts of conversations, for one vocabulary."""

    def __init__(self, controls: Specials) -> None:
        self._controls = controls

    def guarded(
        self, said: Conversation, template: ChatTemplate, check: Callable[[], None]
    ) -> tuple[Conversation, str]:
        """A conversation with seams in it, and the character that those are.

        `check` is called for each message, and may raise. TokenError for texts that have half a
        character, or all characters that seams can be.
        """
        variables = dict(said.variables)
        seam = unused((template.source, *texts_of([said.messages, said.tools, variables])))
        words, compared = _words(template), template.vocabulary.compared_with
        made = []
        for message in said.messages:
            check()
            fields = message.items()
            made.append(
                {self._text(it, seam, words): self._field(it, of, seam, words) for it, of in fields}
            )
        for name, it in variables.items():
            own = compared(name) if isinstance(it, str) else words
            variables[name] = self._value(it, seam, own)
        tools = None if said.tools is None else [self._value(it, seam, words) for it in said.tools]
        return replace(said, messages=made, tools=tools, variables=variables), seam

    def guarded_text(self, text: str, seam: str) -> str:
        """A text with seams in it, for a template that is no chat template."""
        return self._text(text, seam, ())

    def _field(self, name: str, value: Any, seam: str, words: Collection[str]) -> Any:
        """A field of a message: texts are what somebody said, but for roles."""
        if isinstance(value, str):
            return self._text(value, seam, ROLES if name == "role" else ())
        return self._value(value, seam, words)

    def _value(self, value: Any, seam: str, own: Collection[str]) -> Any:
        """What JSON can hold, with seams; `own` are the template's words, which stay."""
        if isinstance(value, str):
            return self._text(value, seam, own)
        if isinstance(value, Mapping):
            return {
                self._value(name, seam, own): self._value(it, seam, () if name == "text" else own)
                for name, it in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self._value(it, seam, own) for it in value]
        return value

    def _text(self, text: str, seam: str, own: Collection[str]) -> str:
        if text in own and text.isidentifier():
            return text
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
        if data in self._joined or self._meets(self._tails, data, ends=False):
            made = seam + made
        if self._meets(self._heads, data, ends=True):
            made += seam
        if made == core:
            return text
        before = len(text) - len(text.lstrip())
        return text[:before] + made + text[before + len(core) :]

    def _meets(self, known: frozenset[bytes], data: bytes, *, ends: bool) -> bool:
        """Whether a text begins, or ends, with one of `known`."""
        lengths = range(1, min(len(data), self._longest) + 1)
        return any((data[-n:] if ends else data[:n]) in known for n in lengths)

    @cached_property
    def _joined(self) -> bytes:
        """All control tokens, between bytes that no text has."""
        return b"\xff".join(self._controls.texts)

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


def _words(template: ChatTemplate) -> frozenset[str]:
    """Words of a template that may be inside of calls, tools and parts: no roles."""
    return template.vocabulary.words - (ROLES - {"function"})


def restored(text: str, seam: str) -> str:
    """A rendered text, with seams that the template wrote as escapes as what they are: Python's
    text of a list, and JSON in ASCII, write them so."""
    return text.replace("\\" + _escape(seam), seam)


def _escape(seam: str) -> str:
    """What follows the backslash of a seam's escape."""
    return f"u{ord(seam):04x}"


def unused(texts: Iterable[str]) -> str:
    """A character that none of the texts has, not even as an escape. TokenError if all are used."""
    left = list(_SEAMS)
    for text in texts:
        if not text.isascii():
            left = [it for it in left if it not in text]
        if "ufd" in text:
            left = [it for it in left if _escape(it) not in text]
    if not left:
        raise TokenError("the conversation has all of U+FDD0 to U+FDEF, which are no characters")
    return left[0]


def texts_of(value: Any) -> Iterator[str]:
    """All texts inside of what JSON can hold."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, it in value.items():
            yield from texts_of(key)
            yield from texts_of(it)
    elif isinstance(value, (list, tuple)):
        for it in value:
            yield from texts_of(it)
