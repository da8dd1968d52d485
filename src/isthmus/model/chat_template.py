"""A model's own chat template: Jinja, written by strangers, so it runs sandboxed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from isthmus.errors import TemplateError
from isthmus.model.gguf import GgufFile
from isthmus.model.tokenizer import Tokenizer

Message = dict[str, Any]


class ChatTemplate:
    """A compiled template. `bos` and `eos` are the texts of those tokens."""

    def __init__(self, source: str, *, bos: str, eos: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        environment.filters["tojson"] = _to_json
        self._tokens = {"bos_token": bos, "eos_token": eos}
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise TemplateError(f"the model's chat template is not usable: {error}") from None

    @classmethod
    def of(cls, file: GgufFile, tokenizer: Tokenizer) -> ChatTemplate | None:
        """A file's template, if it has one. Raises TemplateError if that does not compile."""
        source = file.metadata.get("tokenizer.chat_template")
        if not source or not isinstance(source, str):
            return None

        def text(token: int) -> str:
            found = b"" if token < 0 else tokenizer.decode([token], render_special=True)
            return found.decode(errors="replace")

        return cls(source, bos=text(tokenizer.bos), eos=text(tokenizer.eos))

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        tools: Sequence[dict[str, Any]] | None = None,
    ) -> str:
        """The conversation as the text that the model was trained on.

        `messages` are dicts with `role` and `content`; `tools` are functions that the model may
        call, for templates that know of them. The same messages give the same text at any
        time: templates get no clock. Raises TemplateError where the template refuses them.
        """
        try:
            return self._template.render(
                messages=list(messages),
                add_generation_prompt=add_generation_prompt,
                tools=tools,
                **self._tokens,
            )
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise TemplateError(f"the chat template refused the conversation: {error}") from None


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
