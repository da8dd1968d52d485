"""What a model reads and writes as text: its tokenizer and its chat template."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from isthmus.errors import ModelUnsupported, TemplateError
from isthmus.model.chat_guard import ChatGuard
from isthmus.model.chat_template import ChatTemplate, Message
from isthmus.model.checks import nothing
from isthmus.model.gguf import GgufFile
from isthmus.model.tokenizer import Tokenizer


class TextModel(ABC):
    """The part of a `Model` that is about text. Owns nothing: the model closes the tokenizer."""

    path: Path
    file: GgufFile

    def __init__(self) -> None:
        self._tokenizer: Tokenizer | None = None
        self._template: ChatTemplate | TemplateError | None = None
        """The error of a template that does not compile is raised when it is used."""

    @abstractmethod
    def _require_open(self) -> None:
        """Raises ModelClosed."""

    def _use_tokenizer(self, tokenizer: Tokenizer | None) -> None:
        """Reads and writes text with it, and with the file's chat template."""
        self._tokenizer = tokenizer
        if tokenizer is not None:
            try:
                self._template = ChatTemplate.of(self.file, tokenizer)
            except TemplateError as error:
                self._template = error

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
        return self._template is not None

    def format_chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[dict[str, Any]] | None = None,
        check: Callable[[], None] = nothing,
    ) -> str:
        """A conversation as the text that the model was trained on.

        `messages` are dicts with `role` and `content`; `tools` as OpenAI writes them. `check` is
        called now and then, and may raise. Raises TemplateError where there is no template or it
        refuses them.
        """
        return self._usable_template().render(
            messages, add_generation_prompt=add_generation_prompt, tools=tools, check=check
        )

    def chat_tokens(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        most: int | None = None,
        check: Callable[[], None] = nothing,
    ) -> list[int]:
        """Token ids of a conversation, up to where the model is to answer.

        Only the template gives control tokens: whatever the messages and the tools say is text. The
        arguments are as in `format_chat` and `Tokenizer.encode`. Raises as these.
        """
        template, tokenizer = self._usable_template(), self.tokenizer
        guarded = ChatGuard(tokenizer.controls).guarded(messages, tools, template.source, check)
        text = template.render(
            guarded[0], add_generation_prompt=True, tools=guarded[1], check=check
        )
        ids = tokenizer.encode(
            text, add_special=True, parse_special=True, seam=guarded[2], most=most, check=check
        )
        if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos:
            del ids[0]  # the template wrote it too
        return ids

    def _usable_template(self) -> ChatTemplate:
        if self._template is None:
            raise ModelUnsupported(f"{self.path} has no chat template")
        if isinstance(self._template, TemplateError):
            raise self._template
        return self._template
