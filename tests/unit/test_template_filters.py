"""Jinja's filters and tests are all there, or refused and listed in the documentation."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pytest
from jinja2.filters import FILTERS
from jinja2.tests import TESTS

from isthmus.errors import TemplateError
from isthmus.model.chat.chat_template import ChatTemplate
from isthmus.model.chat.template_filters import REFUSED_FILTERS
from isthmus.model.chat.template_sandbox import BoundedEnvironment

DOCUMENTED = (Path(__file__).parents[2] / "docs" / "models.md").read_text()


def render(source: str) -> str:
    return ChatTemplate(source, bos="", eos="").render([], add_generation_prompt=False)


def test_all_of_jinjas_filters_and_tests_are_known() -> None:
    environment = BoundedEnvironment()
    assert set(FILTERS) <= set(environment.filters)
    assert set(TESTS) == set(environment.tests)
    assert set(jinja2.defaults.DEFAULT_NAMESPACE) - {"lipsum"} <= set(environment.globals)


@pytest.mark.parametrize("name", sorted(REFUSED_FILTERS))
def test_refused_filters_say_so_and_are_listed(name: str) -> None:
    with pytest.raises(TemplateError, match=f"the filter '{name}' is not available"):
        render(f"{{{{ 'a' | {name} }}}}")
    assert f"`{name}`" in DOCUMENTED


def test_json_as_transformers_writes_it() -> None:
    assert render("{{ '<é>' | tojson }}") == '"<é>"'
    assert render("{{ '<é>' | tojson(ensure_ascii=true) }}") == '"<\\u00e9>"'
    assert render("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}") == '{"a": 2, "b": 1}'
    assert render("{{ [1, {'a': 2}] | tojson(separators=(',', ':')) }}") == '[1,{"a":2}]'
    assert render("{{ [1] | tojson(indent=1) }}") == "[\n 1\n]"
    assert render("{{ [1] | tojson(indent='--') }}") == "[\n--1\n]"
    with pytest.raises(TemplateError):
        render("{{ [1] | tojson(indent=65) }}")
