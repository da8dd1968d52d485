from __future__ import annotations

import json
import time
from datetime import datetime, timedelta, timezone

import jinja2
import pytest

from isthmus.errors import Cancelled, TemplateError
from isthmus.model.chat.chat_template import ChatTemplate
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
        "{{ '\\ud800' }}",
    ],
)
def test_refusals_and_escapes_are_errors(source: str) -> None:
    with pytest.raises(TemplateError, match="refused the conversation"):
        render(source)


def test_filters_that_are_refused_may_be_mentioned() -> None:
    """In a branch that is not taken; an unknown filter would make the template unusable."""
    assert render("{% if 0 %}{{ 'a' | random }}{{ 'a' | pprint }}{% endif %}b") == "b"
    with pytest.raises(TemplateError, match="'random' is not available"):
        render("{{ [1] | random }}")


def test_variables_of_the_caller() -> None:
    template = ChatTemplate("{{ x }}{{ y.z }}{{ bos_token }}", bos="<s>", eos="")
    given = {"x": 1, "y": {"z": "a"}, "bos_token": "forged"}
    assert template.render([], add_generation_prompt=False, variables=given) == "1a<s>"


def test_other_special_tokens() -> None:
    template = ChatTemplate("{{ pad_token }}{{ x }}", bos="", eos="", special={"pad_token": "<p>"})
    assert template.render([], add_generation_prompt=False) == "<p>"


def test_template_that_does_not_compile() -> None:
    with pytest.raises(TemplateError, match="not usable"):
        render("{% if %}")


def test_the_clock_is_the_callers() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y %H:%M') }}", bos="", eos="")
    now = datetime(2031, 5, 6, 7, 8, tzinfo=timezone(timedelta(hours=3)))
    assert template.render([], add_generation_prompt=False, now=now) == "06 May 2031 07:08"
    assert template.render([], add_generation_prompt=False) == "26 Jul 2024 00:00"


LONG = 60
"""Seconds in which every attack has ended, on a machine however busy."""
DOUBLINGS = "".join("{% set x = DOUBLE %}" for _ in range(64))
COSTLY = {
    "a power": "{{ 9**(9**9) }}",
    "a power of a power": "{% set x = 9 %}" + "{% set x = x**x %}" * 9 + "{{ x }}",
    "a product": "{% set x = 9 %}" + "{% set x = x*x %}" * 64 + "{{ x }}",
    "a width": '{{ "%999999999d" % 1 }}',
    "a width among the values": '{{ "%*d" % (999999999, 1) }}',
    "a width behind a key": '{{ "%(a)999999999d" % {"a": 1} }}',
    "a width behind keys in keys": '{{ "%((a)b(%))999999999d" % {"(a)b(%)": 1} }}',
    "a width behind a percent": '{{ "%%%999999999d" % 1 }}',
    "a width behind flags": '{{ "%-+ 0999999999d" % 1 }}',
    "a width, by a filter": '{{ "%999999999d" | format(1) }}',
    "a width, by a test": '{{ "%999999999d" is divisibleby(1) }}',
    "a precision": '{{ "%.999999999f" % 1.5 }}',
    "a width, by a method": '{{ "{:999999999d}".format(1) }}',
    "a width, by an item": '{{ "{:999999999d}"["format"](1) }}',
    "a width, by format_map": '{{ "{a:999999999d}".format_map({"a": 1}) }}',
    "center": '{{ "a" | center(999999999) }}',
    "ljust": '{{ "a".ljust(999999999) }}',
    "zfill": '{{ "a".zfill(999999999) }}',
    "expandtabs": '{{ "\\t".expandtabs(999999999) }}',
    "to_bytes": "{{ (1).to_bytes(999999999) }}",
    "an encoded text": '{{ "a".encode().center(999999999) }}',
    "a text many times": '{{ "a" * 99999999999 }}',
    "many times a text": '{{ 99999999999 * "a" }}',
    "a list many times": "{{ [1] * 99999999999 }}",
    "nested loops": "{% for a in range(99999) %}"
    "{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops over filtered lists": "{% for a in range(99999) %}"
    "{% for b in range(99999) if b < 0 %}{% endfor %}{% endfor %}",
    "loops with much text": "{% for a in range(99999) %}" + "x" * 9999 + "{% endfor %}",
    "a list, doubled and written": DOUBLINGS.replace("DOUBLE", "[x, x]") + "{{ x }}",
    "a tuple": DOUBLINGS.replace("DOUBLE", "(x, x)") + "{{ x }}",
    "a dict": DOUBLINGS.replace("DOUBLE", "{1: x, 2: x}") + "{{ x }}",
    "a dict by its function": DOUBLINGS.replace("DOUBLE", "dict(a=x, b=x)") + "{{ x | tojson }}",
    "a text, doubled": '{% set x = "a" %}' + DOUBLINGS.replace("DOUBLE", "x + x"),
    "a text, doubled by ~": '{% set x = "a" %}' + DOUBLINGS.replace("DOUBLE", "x ~ x"),
    "a text, doubled by join": '{% set x = "a" %}' + DOUBLINGS.replace("DOUBLE", "[x, x] | join"),
    "a text, doubled by a method": '{% set x = "a" %}'
    + DOUBLINGS.replace("DOUBLE", '"".join([x, x])'),
    "a text, doubled by %": '{% set x = "a" %}' + DOUBLINGS.replace("DOUBLE", '"%s%s" % (x, x)'),
    "a text, squared": '{% set x = "aaaa" %}' + DOUBLINGS.replace("DOUBLE", 'x.replace("a", x)'),
    "a text, squared by a filter": '{% set x = "aaaa" %}'
    + DOUBLINGS.replace("DOUBLE", 'x | replace("a", x)'),
    "a text, doubled by a block": '{% set x = "a" %}'
    + "{% set x %}{{ x }}{{ x }}{% endset %}" * 64,
    "a list by a filter's default": "{% set x = 1 %}"
    + "{% set x = [{}, {}] | map(attribute='q', default=x) | list %}" * 64
    + "{{ x }}",
    "a list by a macro's further arguments": "{% set n = namespace(x=1) %}"
    "{% macro m() %}{% set n.x = varargs %}{% endmacro %}" + "{{ m(n.x, n.x) }}" * 64 + "{{ n.x }}",
    "lists that are compared": DOUBLINGS.replace("DOUBLE", "[x, x]")
    + DOUBLINGS.replace("x = DOUBLE", "y = [y, y]")
    + "{{ x == y }}",
    "a macro that calls itself twice": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}"
    "{% endif %}{% endmacro %}{{ m(64) }}",
    "blocks that call others twice": "".join(
        f"{{% block b{n} %}}{{% if x %}}{{{{ self.b{n + 1}() }}}}{{{{ self.b{n + 1}() }}}}"
        "{% endif %}{% endblock %}"
        for n in range(64)
    ).replace("if x", "if 1"),
    "a macro without end": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a loop that calls itself": "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "a search for half of a text": '{% set x = "a" * 400000 %}'
    '{{ (x + "b").rfind("b" + x) }}{{ x.strip("b" * 400000 + "a") }}' * 50,
    "ljust by a width of its own": "{{ 'a'.rjust(999999999) }}",
    "center by a filter's name": "{{ 'a' | center(width=999999999) }}",
    "batches": "{{ [1] | batch(999999999, 0) | list }}",
    "batches by name": "{{ [1] | batch(linecount=999999999, fill_with=0) | list }}",
    "slices by name": "{{ [1] | slice(slices=999999999, fill_with=0) | list }}",
    "slices": "{{ [1] | slice(999999999) | list }}",
    "a sum of lists": "{% set x = range(20000) | batch(1) | list %}{{ x | sum(start=[]) }}",
    "a sum of lists by position": "{% set x = range(20000) | batch(1) | list %}"
    "{{ x | sum(none, []) | length }}",
    "a width in a field": "{{ '{:>{}}'.format(1, 999999999) }}",
    "a width in a field of a field": "{{ '{:{w}}'.format(1, w=999999999) }}",
    "a text, doubled by format": '{% set x = "a" %}'
    + DOUBLINGS.replace("DOUBLE", "'{0}{0}'.format(x)"),
    "a mapping, doubled by copy and update": "{% set x = dict(a=1) %}"
    + DOUBLINGS.replace("DOUBLE", "dict(a=x, b=x.copy())")
    + "{{ x | tojson }}",
    "a mapping of keys": "{% for i in range(99999) %}{% set x = dict.fromkeys(range(99999), i) %}"
    "{% endfor %}",
    "indented JSON of deep lists": "{% set n = namespace(x=1) %}{% for i in range(300) %}"
    "{% set n.x = [n.x] %}{% endfor %}" + "{% set y = n.x | tojson(indent=64) %}" * 2000,
    "JSON that is indented by a long text": "{{ [[1]] | tojson(indent='x' * 4000000) }}" * 9,
    "JSON with long separators": "{% set x = range(4000) | list %}"
    "{{ x | tojson(separators=('a' * 100000, 'b')) | length }}",
    "JSON that is sorted": "{% set x = dict.fromkeys(range(90000), 1) %}"
    + "{% set y = x | tojson(sort_keys=true) %}" * 90,
    "JSON of ASCII": "{% set x = 'é' * 400000 %}" + "{% set y = x | tojson(true) %}" * 900,
    "a time of a width": "{{ strftime_now('%999999999d') }}",
    "many times": "{% for i in range(99999) %}{% for j in range(99) %}"
    "{% set x = strftime_now('%c' * 100) %}{% endfor %}{% endfor %}",
    "generation blocks that are nested": "{% macro m(n) %}{% generation %}{% if n %}{{ m(n - 1) }}"
    "{{ m(n - 1) }}{% endif %}{% endgeneration %}{% endmacro %}{{ m(64) }}",
    "a filter that is not there": "{{ 'a b' | wordwrap(1) }}",
    "another text each time": "{{ [1, 2, 3] | random }}",
    "a text in many parts": '{% set x = "a" * 4000000 %}{{ x.split("a") | length }}',
    "all of lipsum": "{{ lipsum(n=99999999) }}",
    "a rounded number": "{{ 5 | round(-999999999) }}",
    "an indented text": '{{ "a\\na" | indent(999999999) }}',
    "indented JSON": "{{ [[1]] | tojson(indent=999999999) }}",
    "many digits": "{% set x = '9' * 4000000 %}{{ x | int }}",
    "deep parentheses": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "deep lists": "{{ " + "[" * 300 + "]" * 300 + " }}" + "{% if x %}" * 5000,
    "a long sum": "{{ 1" + " + 1" * 50_000 + " }}",
    "a long complaint": "{{ raise_exception('x' * 4000000) }}",
    "a template of a megabyte": "x" * (1 << 20),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COSTLY)
def test_templates_that_cost_too_much(name: str) -> None:
    """Each ends with an error; without bounds most of them would never end, or take all memory."""
    before = time.monotonic()
    with pytest.raises(TemplateError) as caught:
        render(COSTLY[name])
    assert time.monotonic() - before < LONG
    assert len(str(caught.value)) < 1000


def test_namespaces_show_nothing_of_what_they_hold() -> None:
    nested = "{% set x = namespace(a=1) %}" + "{% set x = namespace(a=x, b=x) %}" * 64
    assert render(nested + "{{ [x, x] }}") == "[<Namespace>, <Namespace>]"


def test_check_ends_a_rendering() -> None:
    """Whoever waits for a costly template can leave before its budget is used up."""
    template = ChatTemplate(COSTLY["nested loops"], bos="", eos="")

    def leave() -> None:
        raise Cancelled("gone")

    with pytest.raises(Cancelled):
        template.render(MESSAGES, add_generation_prompt=False, check=leave)


def test_long_conversations_are_not_bounded_away() -> None:
    """What real templates do with each message, with thousands of messages and long ones."""
    source = (
        "{% set ns = namespace(last=-1) %}{% for m in messages %}"
        "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in messages %}{% set c = m.content | trim %}"
        "{% if '</think>' in c %}{% set c = c.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
        "{{ '<|' + m['role'] + '|>\\n' + c + ('' if loop.last else '\\n') }}{% endfor %}"
    )
    template = ChatTemplate(source, bos="", eos="")
    for count, length in ((5000, 20), (3, 1_000_000)):
        content = "<think>a</think>" + "b" * length
        messages = [{"role": "user", "content": content}] * count
        text = template.render(messages, add_generation_prompt=False)
        assert text == "\n".join(["<|user|>\n" + "b" * length] * count)


def test_filters_and_methods_that_templates_use() -> None:
    expressions = (
        "'a-b' | replace('-', '+')",
        "['b', 'a'] | sort | join(',')",
        "' x ' | trim",
        "{'k': 1} | items | list",
        "{'b': 1, 'a': 2} | dictsort",
        "'%s-%02d' % ('a', 3)",
        "'%% 2024 %(a)s **%(a)5.1f**' % {'a': 1.5}",
        "'a b'.split()[1:]",
        "messages | selectattr('role', 'equalto', 'user') | list | length",
        "messages | map(attribute='content') | join('|')",
        "7 // 2 + ('x' * 3) | length",
        "{'a': [1]} | tojson(indent=2)",
        "[1, 2] + [3]",
        "'a' ~ 1 ~ none",
        "2.5 | round",
        "'abc'[::-1]",
        "[3, 1] | min",
        "'3' | int + 1",
        "6 is divisibleby 3",
        "'a\\nb' | indent",
        "'<' | e",
        "[1, 1] | unique | list",
        "messages[0].get('x', 'y')",
        "'a' in 'cat' and 'a' not in ['b']",
    )
    source = "".join(f"{{{{ {it} }}}}\n" for it in expressions)
    plain = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    plain.filters["tojson"] = lambda value, indent: json.dumps(value, indent=indent)
    assert render(source) == plain.from_string(source).render(messages=MESSAGES)
