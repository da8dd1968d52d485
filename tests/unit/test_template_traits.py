"""What templates do with conversations, as it is found out by asking them."""

from __future__ import annotations

import pytest

from isthmus.model.chat.chat_template import ChatTemplate
from isthmus.model.chat.template_traits import Content, Fate, Traits
from tests.templates.huggingface import FORMS

SHOWN, DROPPED, REFUSED = Fate.SHOWN, Fate.DROPPED, Fate.REFUSED


def of(source: str) -> Traits:
    return Traits(ChatTemplate(source, bos="<s>", eos="</s>"))


FOUND = {name: of(source) for name, source in FORMS.items()}


def names(wanted: object, attribute: str) -> set[str]:
    return {name for name, it in FOUND.items() if getattr(it, attribute) == wanted}


def test_roles() -> None:
    assert names(False, "has_system") == {"gemma2"}
    assert names(True, "has_developer") == {"gpt_oss"}
    assert names(False, "takes_later_instruction") == {
        *("gemma2", "gemma3", "gpt_oss", "minimax_m2", "mistral_v3", "smollm3")
    }
    fates = {name: it.fate("tool") for name, it in FOUND.items()}
    assert {name for name, it in fates.items() if it is REFUSED} == {"gemma2", "gemma3"}
    assert {name for name, it in fates.items() if it is DROPPED} == {"zephyr"}
    assert all(it.fate("user") is it.fate("assistant") is SHOWN for it in FOUND.values())
    assert FOUND["zephyr"].fate("critic") is DROPPED
    assert FOUND["qwen3_coder"].fate("critic") is SHOWN


def test_tools_and_calls() -> None:
    assert names(DROPPED, "tools") == {"deepseek_r1", "gemma2", "gemma3", "phi4_mini", "zephyr"}
    assert names(DROPPED, "calls") == {"gemma2", "gemma3", "smollm3", "zephyr"}
    assert names(REFUSED, "calls") == set()
    assert names(True, "arguments_are_text") == {"deepseek_r1"}
    assert names(True, "ids_are_short") == {"mistral_v3"}
    assert FOUND["deepseek_r1"].call_contents == {Content.NULL}
    assert FOUND["qwen3"].call_contents == set(Content)
    assert names(DROPPED, "calls_beside_text") >= {"deepseek_r1", "zephyr"}


def test_parts_and_text() -> None:
    parts = {name for name, it in FOUND.items() if it.takes_parts("user")}
    assert parts == {
        *("gemma3", "glm45", "kimi_k2", "llama4", "minimax_m2", "mistral_small", "seed_oss")
    }
    assert all(it.takes_text("user") for it in FOUND.values())
    only = of("{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}")
    assert only.takes_parts("user")
    assert not only.takes_text("user")
    assert only.fate("user") is SHOWN


def test_a_template_that_writes_python_of_arguments_wants_text() -> None:
    body = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}CALL{% endfor %}"
    shown = "{{ c.function.name }}{{ c.function.arguments }}"
    assert of(body.replace("CALL", shown) + "{% endfor %}").arguments_are_text
    quoted = "{{ c.function.name }}{{ c.function.arguments | tojson }}"
    assert not of(body.replace("CALL", quoted) + "{% endfor %}").arguments_are_text


@pytest.mark.slow
def test_a_template_without_end_costs_little() -> None:
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    found = of(loop)
    assert found.fate("user") is found.tools is found.calls is REFUSED
    assert not found.has_system
    assert not found.takes_parts("user")
