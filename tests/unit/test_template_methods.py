"""Methods that templates may call, and that all others are listed in the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from isthmus.errors import TemplateError
from isthmus.model.chat.chat_template import ChatTemplate
from isthmus.model.chat.template_methods import METHODS

DOCUMENTED = (Path(__file__).parents[2] / "docs" / "models.md").read_text()


def render(source: str, **variables: Any) -> str:
    template = ChatTemplate(source, bos="", eos="")
    return template.render([], add_generation_prompt=False, variables=variables)


def test_methods_of_texts_are_there_or_listed() -> None:
    every = {name for name in dir(str) if not name.startswith("_")}
    missing = every - METHODS[str] - {"format"}
    assert missing == {"encode", "expandtabs", "format_map", "maketrans", "translate"}
    assert all(f"`{name}`" in DOCUMENTED for name in missing)


@pytest.mark.parametrize("name", ["encode", "expandtabs", "format_map", "translate"])
def test_other_methods_are_refused(name: str) -> None:
    with pytest.raises(TemplateError):
        render(f"{{{{ 'a'.{name}() }}}}")


def test_format() -> None:
    assert render("{{ '{} {}'.format(1, 'b') }}") == "1 b"
    assert render("{{ '{a:>4}|{0!r}|{{}}'.format('x', a=2) }}") == "   2|'x'|{}"
    assert render("{{ ('{:.1f}' | attr('format'))(2.25) }}") == "2.2"
    assert render("{{ '{}'['format'](x) }}", x=[1]) == "[1]"


@pytest.mark.parametrize(
    "source",
    [
        "{{ '{0.real}'.format(1) }}",
        "{{ '{0[0]}'.format([1]) }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ '{:{}}'.format(1, 2) }}",
        "{{ '{:9999}'.format(1) }}",
        "{{ '{:.9999f}'.format(1.5) }}",
        "{{ '{:0>123456}'.format(1) }}",
        "{{ '{'.format(1) }}",
        "{{ '{5}'.format(1) }}",
    ],
)
def test_formats_that_are_refused(source: str) -> None:
    with pytest.raises(TemplateError):
        render(source)


def test_a_copy_is_another_list() -> None:
    assert render("{{ x.copy() }}{{ y.copy() }}", x=[1], y={"a": 1}) == "[1]{'a': 1}"
    with pytest.raises(TemplateError):
        render("{{ x.copy().append(1) }}", x=[1])
