"""A model's own chat template: Jinja, written by strangers, so it runs sandboxed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from isthmus.errors import IsthmusError, TemplateError
from isthmus.model.checks import nothing
from isthmus.model.gguf import GgufFile
from isthmus.model.template_budget import Budget
from isthmus.model.template_sandbox import BUDGET, BoundedEnvironment
from isthmus.model.tokenizer import Tokenizer

Message = dict[str, Any]

MOST_SOURCE = 1 << 18
"""Characters of a template; the longest that is known has 25,000."""
_MOST_COMPLAINT = 500


class ChatTemplate:
    """A compiled template of `source`. `bos` and `eos` are the texts of those tokens."""

    def __init__(self, source: str, *, bos: str, eos: str) -> None:
        self.source = source
        self._tokens = {"bos_token": bos, "eos_token": eos}
        if len(source) > MOST_SOURCE:
            raise TemplateError(
                f"the model's chat template has {len(source)} characters; up to {MOST_SOURCE} are "
                "taken"
            )
        try:
            self._template = BoundedEnvironment().from_string(source)
        except Exception as error:  # of the compiler too: it may be nested too deeply
            raise TemplateError(
                f"the model's chat template is not usable: {_shown(error)}"
            ) from None

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
        check: Callable[[], None] = nothing,
    ) -> str:
        """The conversation as the text that the model was trained on.

        `messages` are dicts with `role` and `content`; `tools` are functions that the model may
        call, for templates that know of them. `check` is called now and then, and may raise. The
        same messages give the same text at any time: templates get no clock. Raises TemplateError
        if the template refuses them, or takes too many steps or too much memory for them.
        """
        given = {"messages": list(messages), "tools": tools}
        try:
            budget = Budget(given, check)
            text = self._template.render(
                add_generation_prompt=add_generation_prompt,
                **given,
                **self._tokens,
                **{BUDGET: budget},
            )
            text.encode()  # half of a surrogate pair is no text
        except IsthmusError:
            raise
        except Exception as error:  # whatever a stranger's program can raise
            raise TemplateError(
                f"the chat template refused the conversation: {_shown(error)}"
            ) from None
        return text


def _shown(error: Exception) -> str:
    """An error's message, or its kind, in a length that can be read."""
    text = str(error)[: _MOST_COMPLAINT + 1] or type(error).__name__
    return text if len(text) <= _MOST_COMPLAINT else text[:_MOST_COMPLAINT] + " …"
