"""A model's own chat template: Jinja, written by strangers, so it runs sandboxed.

A template sees what Transformers' `apply_chat_template` gives one: `messages`, `tools`,
`documents`, `add_generation_prompt`, the texts of special tokens, and the caller's variables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from isthmus.errors import IsthmusError, TemplateError
from isthmus.model.chat.template_budget import BUDGET, UNITS, Budget
from isthmus.model.chat.template_clock import NO_CLOCK
from isthmus.model.chat.template_sandbox import CLOCK, BoundedEnvironment
from isthmus.model.chat.template_tree import Vocabulary, vocabulary_of
from isthmus.model.checks import nothing

Message = dict[str, Any]

MAX_SOURCE = 1 << 18
"""Characters of a template; the longest that is known has 25,000."""
_MAX_COMPLAINT = 500


class ChatTemplate:
    """A compiled template of `source`. `bos` and `eos` are the texts of those tokens, `special`
    those of others by the names that templates have for them, as `pad_token`."""

    def __init__(
        self, source: str, *, bos: str, eos: str, special: Mapping[str, str] | None = None
    ) -> None:
        self.source = source
        self._tokens = {**(special or {}), "bos_token": bos, "eos_token": eos}
        if len(source) > MAX_SOURCE:
            raise TemplateError(
                f"the model's chat template has {len(source)} characters; up to {MAX_SOURCE} are "
                "taken"
            )
        try:
            environment = BoundedEnvironment()
            tree = environment.parse(source)
            self.vocabulary: Vocabulary = vocabulary_of(tree)
            """The words that the template itself has."""
            self._template = environment.from_string(tree)
        except Exception as error:  # of the compiler too: it may be nested too deeply
            raise TemplateError(
                f"the model's chat template is not usable: {_shown(error)}"
            ) from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        now: datetime = NO_CLOCK,
        check: Callable[[], None] = nothing,
        units: int = UNITS,
    ) -> str:
        """The conversation as the text that the model was trained on.

        `messages` are dicts with `role` and `content`; `tools` are functions that the model may
        call, for templates that know of them; `variables` are further names of the template. `now`
        is the time that it is told. `check` is called now and then, and may raise. `units` are what
        the rendering may cost beside what grows with the conversation. The same arguments give the
        same text at any time. Raises TemplateError if the template refuses them, or takes too many
        steps or too much memory for them.
        """
        given = {"messages": list(messages), "tools": tools, **(variables or {})}
        own = {"add_generation_prompt": add_generation_prompt, CLOCK: now, **self._tokens}
        try:
            own[BUDGET] = Budget(given, check, units)
            text = self._template.render({"documents": None, **given, **own})
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
    text = str(error)[: _MAX_COMPLAINT + 1] or type(error).__name__
    return text if len(text) <= _MAX_COMPLAINT else text[:_MAX_COMPLAINT] + " …"
