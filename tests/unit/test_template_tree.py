"""Which words a template has: what it compares, and what it reads."""

from __future__ import annotations

from isthmus.model.chat.chat_template import ChatTemplate

SOURCE = """
{%- set mode = (thinking_mode | default('auto')) | lower -%}
{%- set ns = namespace(effort='x') -%}{%- set ns.effort = reasoning_effort -%}
{%- if mode == 'deep' or 'shallow' == mode -%}a{%- endif -%}
{%- if ns.effort in ['low', 'high'] -%}b{%- endif -%}
{%- for m in messages -%}{%- if m.role == 'user' and m['kind'] != 'odd' -%}{{ m.content }}
{%- endif -%}{%- endfor -%}{{ tools | map(attribute='function') | join(', ') }}
"""


def test_constants_and_fields_are_words() -> None:
    found = ChatTemplate(SOURCE, bos="", eos="").vocabulary
    assert {"role", "kind", "content", "effort", "user", "odd", "function", "auto"} <= found.words
    assert "messages" not in found.words
    assert {"messages", "tools", "thinking_mode", "reasoning_effort", "ns"} <= found.names
    assert "role" not in found.names


def test_what_a_variable_is_compared_with() -> None:
    """By itself, or by another that is set to it."""
    compared = ChatTemplate(SOURCE, bos="", eos="").vocabulary.compared_with
    assert compared("thinking_mode") == {"deep", "shallow"}
    assert compared("reasoning_effort") == {"low", "high"}
    assert compared("mode") == {"deep", "shallow"}
    assert compared("tools") == compared("nothing") == frozenset()


def test_variables_that_are_set_to_each_other() -> None:
    source = "{% set a = b %}{% set b = a %}{% if a == 'x' %}{% endif %}"
    compared = ChatTemplate(source, bos="", eos="").vocabulary.compared_with
    assert compared("a") == compared("b") == {"x"}
