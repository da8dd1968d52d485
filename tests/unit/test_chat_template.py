from __future__ import annotations

import pytest

from isthmus.errors import TemplateError
from isthmus.model.chat_template import ChatTemplate
from tests.tiny_gguf import CHATML

MESSAGES = [{"role": "user", "content": "Hi"}]


def render(source: str, **kwargs: bool) -> str:
    prompt = kwargs.get("prompt", False)
    template = ChatTemplate(source, bos="<s>", eos="</s>")
    return template.render(MESSAGES, add_generation_prompt=prompt)


def test_chatml() -> None:
    assert render(CHATML) == "<|im_start|>user\nHi<|im_end|>\n"
    assert render(CHATML, prompt=True).endswith("<|im_start|>assistant\n")


def test_tokens_and_filters_that_templates_use() -> None:
    assert render("{{ bos_token }}{{ messages | tojson }}{{ eos_token }}") == (
        '<s>[{"role": "user", "content": "Hi"}]</s>'
    )
    assert render("{% for m in messages %}{% break %}{% endfor %}x") == "x"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[5].content }}",
        "{{ 1 / 0 }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_refusals_and_escapes_are_errors(source: str) -> None:
    with pytest.raises(TemplateError, match="refused the conversation"):
        render(source)


def test_template_that_does_not_compile() -> None:
    with pytest.raises(TemplateError, match="not usable"):
        render("{% if %}")


def test_no_clock() -> None:
    assert render("{{ strftime_now is defined }}") == "False"
