"""What a model reads and writes as text: its tokenizer and its chat templates."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.abi import TokenFlag
from isthmus.errors import ModelUnsupported, TokenError
from isthmus.model.chat.chat_guard import ChatGuard, restored, texts_of
from isthmus.model.chat.conversation import Conversation, prepared
from isthmus.model.chat.media_marks import MediaMarks, id_of
from isthmus.model.chat.template_clock import NO_CLOCK
from isthmus.model.chat.template_set import TemplateSet
from isthmus.model.checks import nothing
from isthmus.model.files.gguf import GgufFile
from isthmus.model.forms import Form, opens_thought
from isthmus.model.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class RenderedChat:
    """A conversation as a model reads it."""

    ids: list[int]
    """Token ids, up to where the model is to answer."""
    text: str
    """The conversation as text, up to the same place."""
    warnings: tuple[str, ...]
    """Sentences about what the template leaves out, for whoever asked."""
    opens_thought: bool
    """Whether the answer begins inside a thought, since the template has opened it."""


class TextModel(ABC):
    """The part of a `Model` that is about text. Owns nothing: the model closes the tokenizer."""

    path: Path
    file: GgufFile
    n_vocab: int

    def __init__(self) -> None:
        self._tokenizer: Tokenizer | None = None
        self._templates: TemplateSet | None = None

    @abstractmethod
    def _require_open(self) -> None:
        """Raises ModelClosed."""

    def _use_tokenizer(self, tokenizer: Tokenizer | None) -> None:
        """Reads and writes text with it, and with the file's chat templates."""
        self._tokenizer = tokenizer
        if tokenizer is not None:
            self._templates = TemplateSet.of(self.file, tokenizer)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; ModelUnsupported where the file has none."""
        self._require_open()
        if self._tokenizer is None:
            raise ModelUnsupported(f"{self.path} has no tokenizer")
        return self._tokenizer

    @property
    def has_tokenizer(self) -> bool:
        """Whether the file has a tokenizer."""
        return self._tokenizer is not None

    @property
    def has_chat_template(self) -> bool:
        """Whether the file has a chat template."""
        return self._templates is not None

    @property
    def chat_templates(self) -> TemplateSet:
        """The file's chat templates; ModelUnsupported if it has none."""
        if self._templates is None:
            raise ModelUnsupported(f"{self.path} has no chat template")
        return self._templates

    def form(self, *, with_tools: bool) -> Form:
        """The form in which the model writes calls and thoughts, told by its chat template."""
        return self.chat_templates.chosen(with_tools=with_tools).form

    def controls(self, form: Form) -> dict[str, int]:
        """Ids of the control tokens that a form is written with, by their texts."""
        tokenizer = self.tokenizer
        found = {it: tokenizer.encode(it, parse_special=True) for it in form.controls}
        return {
            text: ids[0]
            for text, ids in found.items()
            if len(ids) == 1 and tokenizer.flags(ids[0]) & TokenFlag.CONTROL
        }

    def format_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        now: datetime = NO_CLOCK,
        check: Callable[[], None] = nothing,
    ) -> str:
        """A conversation as the text that the model was trained on.

        `messages` and `tools` are as OpenAI writes them; `isthmus.model.chat.conversation` says
        what becomes of them. `variables` are further names for the template, as `enable_thinking`;
        they have to be JSON, and cannot be names that a template has already. `now` is the wall
        clock's time that the template is told. `check` is called now and then, and may raise.
        Raises TemplateError if the template refuses the conversation, or it is none, SettingsError
        for variables that cannot be, ModelUnsupported for a model without a template.
        """
        asked = Conversation(messages, tools or None, variables or {})
        traits = self.chat_templates.chosen(with_tools=asked.tools is not None)
        ready, _ = prepared(asked, traits, check)
        return traits.template.render(
            ready.messages,
            add_generation_prompt=add_generation_prompt,
            tools=ready.tools,
            variables=ready.variables,
            now=now,
            check=check,
        )

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        now: datetime = NO_CLOCK,
        most: int | None = None,
        check: Callable[[], None] = nothing,
    ) -> RenderedChat:
        """A conversation for the model to go on with, and what is to be known of it.

        Only the template gives control tokens: whatever messages, tools and variables say is text.
        The arguments are as in `format_chat` and `Tokenizer.encode`. Parts of the type `media` give
        ids that no token has: see `media_marks`. Raises as these.
        """
        marks = MediaMarks(messages, list(texts_of([tools, variables])))
        asked = Conversation(marks.marked(), tools or None, variables or {})
        traits = self.chat_templates.chosen(with_tools=asked.tools is not None)
        template, tokenizer = traits.template, self.tokenizer
        ready, warnings = prepared(asked, traits, check)
        guarded, seam = ChatGuard(tokenizer.controls).guarded(ready, template, check)
        text = template.render(
            guarded.messages,
            add_generation_prompt=True,
            tools=guarded.tools,
            variables=guarded.variables,
            now=now,
            check=check,
        )
        text = restored(text, seam)
        encode = partial(tokenizer.encode, parse_special=True, seam=seam, most=most, check=check)
        ids = _encoded(text, marks, tokenizer, encode)
        if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos:
            del ids[0]  # the template wrote it too
        thinks = opens_thought(traits.form, text)  # a control token that users say has a seam in it
        return RenderedChat(ids, text.replace(seam, ""), warnings, thinks)

    def chat_tokens(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        now: datetime = NO_CLOCK,
        most: int | None = None,
        check: Callable[[], None] = nothing,
    ) -> list[int]:
        """The token ids of `render_chat`."""
        return self.render_chat(
            messages, tools=tools, variables=variables, now=now, most=most, check=check
        ).ids

    def require_token(self, token: int) -> None:
        """Raises TokenError for an id outside the vocabulary: kernels use it as an address."""
        if not 0 <= token < self.n_vocab:
            raise TokenError(f"token {token} is not in the vocabulary of {self.n_vocab}")

    def require_tokens(self, tokens: Sequence[int]) -> None:
        """As `require_token`, of all tokens; the error names the first bad one."""
        ids = np.asarray(tokens)
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.n_vocab:
            for token in tokens:
                self.require_token(token)


def _encoded(
    text: str, marks: MediaMarks, tokenizer: Tokenizer, encode: Callable[..., list[int]]
) -> list[int]:
    """The token ids of a rendered conversation, with an id for each mark of a medium."""
    if not marks.numbers:
        return encode(text, add_special=True)
    before, after = tokenizer.ends
    pieces = [encode(it) if isinstance(it, str) else [id_of(it)] for it in marks.cut(text)]
    return [*before, *itertools.chain.from_iterable(pieces), *after]
