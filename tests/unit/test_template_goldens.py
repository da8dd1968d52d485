"""Templates render as in Transformers, whose texts `tests/templates/goldens.json` has."""

from __future__ import annotations

import json
from typing import Any

import pytest

from isthmus.errors import TemplateError
from isthmus.model.chat.chat_template import ChatTemplate
from isthmus.model.chat.conversation import Conversation, prepared
from isthmus.model.chat.template_traits import Traits
from tests.templates.conversations import CONVERSATIONS
from tests.templates.huggingface import BOS, EOS, FORMS, GOLDENS, NOW, TEMPLATES, with_mappings

TEXTS: dict[str, dict[str, str | None]] = json.loads(GOLDENS.read_text())
TAKE_PARTS = {"gemma3", "glm45", "kimi_k2", "llama4", "minimax_m2", "mistral_small", "seed_oss"}
MENDED = {
    "parts": (set(FORMS) - TAKE_PARTS, ("Be kind.", "One.", "Two.")),
    "developer": (set(FORMS) - {"gpt_oss"}, ("Answer in French.", "Hello")),
    "system": ({"gemma2"}, ("Be brief.", "Hi", "Yes?", "Go on")),
    "later_system": (
        {"gemma2", "gemma3", "gpt_oss", "minimax_m2", "mistral_v3", "smollm3"},
        ("Shout.", "Hello", "Hi", "Now?"),
    ),
    "call": ({"deepseek_r1"}, ("get_weather", '{"city": "Paris", "unit": "c"}', '{"t": 21}')),
    "null_content": ({"deepseek_r1", "zephyr"}, ("Weather in Paris?", "It is 21.", "Thanks")),
    "reasoning": ({"deepseek_r1"}, ("2 + 2?", '{"a": 4, "b": 3}')),
}
"""Templates that drop or refuse what clients send, by conversation, and what is there nevertheless:
contents as parts, roles, calls with a content that is empty and arguments that are no text."""
REASONING = ("reasoning_content", "thinking", "reasoning")


def compiled(name: str) -> ChatTemplate:
    return ChatTemplate(TEMPLATES[name], bos=BOS, eos=EOS)


def as_transformers_has(message: dict[str, Any]) -> dict[str, Any]:
    """A message as Transformers gives it to a template."""
    given = {name: it for name, it in with_mappings(message).items() if it is not None}
    reasoning = next((given[name] for name in REASONING if name in given), None)
    if reasoning is None:
        return given
    return {"thinking": reasoning, **given, "reasoning_content": reasoning}


def rendered(template: ChatTemplate, said: Conversation) -> str | None:
    try:
        return template.render(
            said.messages,
            add_generation_prompt=True,
            tools=said.tools,
            variables=said.variables,
            now=NOW,
        )
    except TemplateError:
        return None


def test_there_are_texts_for_all() -> None:
    assert set(TEXTS) == set(TEMPLATES)
    assert all(set(it) == set(CONVERSATIONS) for it in TEXTS.values())
    assert len(TEMPLATES) >= 60
    assert len(CONVERSATIONS) >= 10


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_as_in_transformers(name: str) -> None:
    """With the very messages that Transformers has; what it refuses is refused here."""
    template = compiled(name)
    for conversation, said in CONVERSATIONS.items():
        messages = [as_transformers_has(it) for it in said["messages"]]
        asked = Conversation(messages, said.get("tools"), said.get("variables", {}))
        assert rendered(template, asked) == TEXTS[name][conversation], conversation


@pytest.mark.parametrize("name", FORMS)
def test_conversations_render_as_in_transformers(name: str) -> None:
    """As clients send them; where a template would lose something, all of it is there."""
    traits = Traits(compiled(name))
    for conversation, said in CONVERSATIONS.items():
        asked = Conversation(said["messages"], said.get("tools"), said.get("variables", {}))
        text = rendered(traits.template, prepared(asked, traits)[0])
        names, contained = MENDED.get(conversation, (set(), ()))
        if name in names:
            assert text is not None, conversation
            assert all(it in text for it in contained), (conversation, text)
            assert text != TEXTS[name][conversation], conversation
        else:
            assert text == TEXTS[name][conversation], conversation
