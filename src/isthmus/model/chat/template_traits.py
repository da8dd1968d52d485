"""What a chat template does with conversations, found out by rendering small ones with marks.

A template is a program, so nothing else tells whether it shows tools to the model, has a role for
instructions, or takes the arguments of calls as JSON's text. Each question is asked when it first
matters, of a budget of its own; a template that exceeds it is as one that refuses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from functools import cached_property
from typing import Any

from isthmus.errors import TemplateError
from isthmus.model.chat.chat_template import ChatTemplate
from isthmus.model.forms import Form, recognised

_UNITS = 1 << 20
"""Units for one question, a tenth of a second at most; the templates of tests need up to 33,000."""
_MAX_FATES, _MAX_ROLE = 64, 64
"""Roles times forms of contents that are remembered, and characters of such a role."""
_MARK, _OTHER_MARK = "qzmarka", "qzmarkb"
_KEY, _VALUE = "qzkeya", "qzvaluea"
_NAME = "qzfunctiona"
LONG_ID, SHORT_ID = "call_qz0123456789abcdefghij", "qz0123456"
"""Ids of calls as OpenAI has them, and the nine letters or digits that Mistral's templates want."""
_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "Does something.",
        "parameters": {"type": "object", "properties": {_KEY: {"type": "string"}}},
    },
}
_USER = {"role": "user", "content": "a"}
_ANSWER = {"role": "assistant", "content": "b"}
_ARGUMENTS: Mapping[bool, Any] = {False: {_KEY: _VALUE}, True: f'{{"{_KEY}": "{_VALUE}"}}'}
"""By whether they are text."""


class Fate(Enum):
    """What a template does with a message."""

    SHOWN = "shown"
    DROPPED = "dropped"
    REFUSED = "refused"


class Content(Enum):
    """How a message without text says so."""

    ABSENT = "absent"
    EMPTY = "empty"
    NULL = "null"

    def written(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The message with such a content."""
        if self is Content.ABSENT:
            return {name: it for name, it in message.items() if name != "content"}
        return {**message, "content": "" if self is Content.EMPTY else None}


class Traits:
    """A template, and what it does. Safe to use from several threads, which may ask twice."""

    def __init__(self, template: ChatTemplate) -> None:
        self.template = template
        self._fates: dict[tuple[str, bool], Fate] = {}
        """By role, and whether the content is in parts."""

    @cached_property
    def form(self) -> Form:
        """The form in which the template's models write calls and thoughts."""
        return recognised(self.template.source)

    # ------------------------------------------------------------------ roles

    def fate(self, role: str) -> Fate:
        """What becomes of a message of a role, in the form of content that suits it best."""
        as_text = self._fate(role, in_parts=False)
        return as_text if as_text is Fate.SHOWN or not self.takes_parts(role) else Fate.SHOWN

    def takes_parts(self, role: str) -> bool:
        """Whether contents of a role may be lists of parts, of which the texts are shown."""
        return self._fate(role, in_parts=True) is Fate.SHOWN

    def takes_text(self, role: str) -> bool:
        """Whether contents of a role may be text."""
        return self._fate(role, in_parts=False) is Fate.SHOWN

    @cached_property
    def has_system(self) -> bool:
        """Whether instructions have a role."""
        return self.fate("system") is Fate.SHOWN

    @cached_property
    def has_developer(self) -> bool:
        """Whether the template knows a role called developer: one that it writes down whatever it
        is called is none that the model knows."""
        return "developer" in self.template.vocabulary.words and (
            self.fate("developer") is Fate.SHOWN
        )

    @cached_property
    def takes_second_instruction(self) -> bool:
        """Whether a message with instructions may follow another one."""
        role = "system" if self.has_system else "developer"
        messages = [self._said(role, _OTHER_MARK), self._said(role, _MARK), self._said("user", "a")]
        text = self._rendered(messages)
        return text is not None and _MARK in text and _OTHER_MARK in text

    @cached_property
    def takes_later_instruction(self) -> bool:
        """Whether a message with instructions may come behind others."""
        role = "system" if self.has_system else "developer"
        first = [self._said("user", "a"), self._said("assistant", "b")]
        text = self._rendered([*first, self._said(role, _MARK), self._said("user", "c")])
        return text is not None and _MARK in text

    def _fate(self, role: str, *, in_parts: bool) -> Fate:
        found = self._fates.get((role, in_parts))
        if found is None:
            found = self._probed(role, in_parts)
            if len(role) <= _MAX_ROLE and len(self._fates) < _MAX_FATES:
                self._fates[role, in_parts] = found
        return found

    def _probed(self, role: str, in_parts: bool) -> Fate:
        content = [{"type": "text", "text": _MARK}] if in_parts else _MARK
        message = {"role": role, "content": content}
        before = _BEFORE.get(role, (_USER, _ANSWER))
        if role in ("tool", "function"):
            before = (_USER, self._call(self.arguments_are_text, self._usual_content))
            message |= {"tool_call_id": self._id, "name": _NAME}
        after = () if role in ("user", "tool", "function") or role not in _BEFORE else (_USER,)
        tools = [_TOOL] if role in ("tool", "function") else None
        text = self._rendered([*before, message, *after], tools)
        if text is None:
            return Fate.REFUSED
        is_whole = in_parts and any(it in text for it in ("'text': ", '"text": ', '"text":"'))
        return Fate.SHOWN if _MARK in text and not is_whole else Fate.DROPPED

    def _said(self, role: str, text: str) -> dict[str, Any]:
        in_parts = not self.takes_text(role) and self.takes_parts(role)
        return {"role": role, "content": [{"type": "text", "text": text}] if in_parts else text}

    # ------------------------------------------------------------------ tools

    @cached_property
    def tools(self) -> Fate:
        """What becomes of tools."""
        text = self._rendered([self._said("user", "a")], [_TOOL])
        if text is None:
            return Fate.REFUSED
        return Fate.SHOWN if _NAME in text else Fate.DROPPED

    @cached_property
    def call_contents(self) -> frozenset[Content]:
        """How messages with calls and without text may say so; empty if calls are not shown."""
        return self._calls[1]

    @cached_property
    def arguments_are_text(self) -> bool:
        """Whether arguments of calls have to be JSON's text; otherwise they are mappings."""
        return self._calls[0]

    @cached_property
    def ids_are_short(self) -> bool:
        """Whether ids of calls have to have nine letters and digits."""
        return self._id == SHORT_ID

    @cached_property
    def calls(self) -> Fate:
        """What becomes of calls in messages without text."""
        if self.call_contents:
            return Fate.SHOWN
        texts = [self._rendered([_USER, self._call(False, it)], [_TOOL]) for it in Content]
        return Fate.REFUSED if all(it is None for it in texts) else Fate.DROPPED

    @cached_property
    def calls_beside_text(self) -> Fate:
        """What becomes of calls in messages that have text as well."""
        call = self._call(self.arguments_are_text, Content.EMPTY) | self._said("assistant", _MARK)
        text = self._rendered([_USER, call], [_TOOL])
        if text is None:
            return Fate.REFUSED
        return Fate.SHOWN if _NAME in text and _VALUE in text else Fate.DROPPED

    @cached_property
    def _calls(self) -> tuple[bool, frozenset[Content]]:
        """Whether arguments are text, and which contents suit."""
        for is_text in (False, True):
            suits = frozenset(it for it in Content if self._shows_call(is_text, it))
            if suits:
                return is_text, suits
        return False, frozenset()

    def _shows_call(self, is_text: bool, content: Content) -> bool:
        """Whether a call is shown, not as Python would write it, and no content beside it."""
        text = self._rendered([_USER, self._call(is_text, content)], [_TOOL])
        if text is None or not all(it in text for it in (_NAME, _KEY, _VALUE)):
            return False
        usual = self._rendered([_USER], [_TOOL]) or ""
        return f"'{_KEY}': '{_VALUE}'" not in text and text.count("None") <= usual.count("None")

    @cached_property
    def _usual_content(self) -> Content:
        return next((it for it in Content if it in self.call_contents), Content.EMPTY)

    @cached_property
    def _id(self) -> str:
        """An id of calls that the template takes."""
        for found in (LONG_ID, SHORT_ID):
            for content in Content:
                call = self._call(False, content, found)
                result = {"role": "tool", "content": "c", "tool_call_id": found, "name": _NAME}
                text = self._rendered([_USER, call, result], [_TOOL])
                if text is not None and _NAME in text:
                    return found
        return LONG_ID

    def _call(self, is_text: bool, content: Content, name: str = "") -> dict[str, Any]:
        function = {"name": _NAME, "arguments": _ARGUMENTS[is_text]}
        call = {"id": name or self._id, "type": "function", "function": function}
        return content.written({"role": "assistant", "content": "", "tool_calls": [call]})

    # ------------------------------------------------------------------ rendering

    def _rendered(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None
    ) -> str | None:
        """The text of a conversation; None if the template refuses it."""
        try:
            return self.template.render(
                messages, add_generation_prompt=True, tools=tools, units=_UNITS
            )
        except TemplateError:
            return None


_BEFORE: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "system": (),
    "developer": (),
    "user": (),
    "assistant": (_USER,),
    "tool": (),
    "function": (),
}
"""What comes before a message of each role that is known here."""
