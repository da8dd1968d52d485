"""What Transformers renders: goldens of it, and the same made anew where it is installed.

A pair of a template and a conversation has the text of `apply_chat_template`, or None if that
raises. Conversations go to it as its documentation wants them: arguments of calls are mappings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.templates.constructs import CONSTRUCTS
from tests.templates.conversations import CONVERSATIONS

HERE = Path(__file__).parent
GOLDENS = HERE / "goldens.json"
FORMS = {path.stem: path.read_text() for path in sorted((HERE / "forms").glob("*.jinja"))}
TEMPLATES = FORMS | CONSTRUCTS
NOW = datetime(2026, 3, 9, 8, 5, 7)
BOS, EOS = "<s>", "</s>"


def with_mappings(message: dict[str, Any]) -> dict[str, Any]:
    """A message with the arguments of its calls as mappings."""
    calls = []
    for call in message.get("tool_calls") or ():
        arguments = json.loads(call["function"]["arguments"])
        calls.append(call | {"function": call["function"] | {"arguments": arguments}})
    return message | {"tool_calls": calls} if calls else message


def render_all() -> Iterator[tuple[str, str, str | None]]:
    """Each template's name, each conversation's, and what Transformers makes of them."""
    tokenizer, now = _tokenizer(), NOW
    from transformers.utils import chat_template_utils

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return now

    real = chat_template_utils.datetime
    chat_template_utils.datetime = Clock
    try:
        for template, source in TEMPLATES.items():
            for name, said in CONVERSATIONS.items():
                yield template, name, _rendered(tokenizer, source, said)
    finally:
        chat_template_utils.datetime = real


def _rendered(tokenizer: Any, source: str, said: dict[str, Any]) -> str | None:
    try:
        text: str = tokenizer.apply_chat_template(
            [with_mappings(it) for it in said["messages"]],
            tools=said.get("tools"),
            chat_template=source,
            add_generation_prompt=True,
            tokenize=False,
            **said.get("variables", {}),
        )
    except Exception:  # whatever a template can raise
        return None
    return text


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = models.WordLevel({"a": 0, BOS: 1, EOS: 2}, unk_token="a")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), bos_token=BOS, eos_token=EOS)
