"""Small templates, each of one construct that real ones have."""

from __future__ import annotations

TURNS = "{% for m in messages %}[{{ m.role }}] {{ BODY }}\n{% endfor %}"


def _each(body: str) -> str:
    return TURNS.replace("BODY", body)


CONSTRUCTS: dict[str, str] = {
    "strftime": "{{ strftime_now('%Y-%m-%d %H:%M:%S %d %b %B %-d %A %j %y %I %p %e %z|%Z|%%Y') }}",
    "tojson": "{{ messages | tojson }}|{{ tools | tojson }}",
    "tojson_html": "{{ \"<a href='x'>&amp;\" | tojson }}",
    "tojson_ascii": "{{ messages | tojson(ensure_ascii=True) }}",
    "tojson_indent": "{{ tools | tojson(indent=2) }}{{ messages | tojson(indent='\t') }}",
    "tojson_separators": "{{ messages | tojson(separators=(',', ':')) }}",
    "tojson_sorted": "{{ messages | tojson(sort_keys=true, indent=1) }}",
    "tojson_positional": "{{ messages | tojson(true, 1, ('; ', ' = '), true) }}",
    "tojson_undefined": "{{ nothing | tojson }}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
    "{% set x = 'in' %}{{ m.content }}{{ loop.index }}{% endgeneration %}{{ x | default('out') }}"
    "{% else %}{{ m.role }}{% endif %}{% endfor %}",
    "generation_trimmed": "{%- for m in messages -%}\n  {%- generation -%}\n {{ m.role }} "
    "{%- endgeneration -%}\n{% endfor %}",
    "raise_exception": "{% if tools %}{{ raise_exception('none of ' ~ tools) }}{% endif %}ok",
    "namespace": "{% set ns = namespace(n=0, last=none) %}{% for m in messages %}"
    "{% if m.role != 'system' %}{% set ns.n = ns.n + 1 %}{% set ns.last = m.role %}{% endif %}"
    "{% endfor %}{{ ns.n }} {{ ns.last }} {{ ns.missing is defined }}",
    "namespace_of_a_mapping": "{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a }}{{ ns.b }}",
    "loop_controls": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
    "{{ m.role }}{% if m.role == 'assistant' %}{% break %}{% endif %}{% endfor %}",
    "loop_fields": _each(
        "loop.index ~ loop.index0 ~ loop.revindex ~ loop.revindex0 ~ loop.first ~ loop.last"
        " ~ loop.length ~ loop.depth ~ loop.cycle('a', 'b') ~ loop.changed(m.role)"
    ),
    "loop_neighbours": _each(
        "(loop.previtem.role if loop.previtem else '-') ~ (loop.nextitem.role if loop.nextitem)"
    ),
    "loop_else_and_filter": "{% for m in messages if m.role == 'nobody' %}{{ m }}{% else %}none"
    "{% endfor %}{% for m in messages if m.role == 'user' %}{{ loop.index }}/{{ loop.length }} "
    "{% endfor %}",
    "slices": "{% for m in messages[::-1] %}{{ m.role }},{% endfor %}{{ messages[1:] | length }}"
    "{{ messages[:-1] | length }}{{ messages[-1].role[1:3] }}{{ 'abcdef'[::2] }}",
    "type_tests": _each(
        "(m.content is string) ~ (m.content is mapping) ~ (m.content is iterable)"
        " ~ (m.content is none) ~ (m.content is defined) ~ (m.content is sequence)"
        " ~ (m.tool_calls is defined) ~ (m.x is undefined) ~ (1 is number) ~ (true is boolean)"
        " ~ (1.5 is float) ~ (m is callable)"
    ),
    "comparison_tests": "{{ 1 is eq 1 }}{{ 2 is gt(1) }}{{ 'a' is in 'cat' }}{{ 4 is even }}"
    "{{ 3 is odd }}{{ 6 is divisibleby 3 }}{{ 'a' is lower }}{{ none is sameas none }}"
    "{{ 'x' is escaped }}{{ 'trim' is filter }}{{ 'odd' is test }}{{ true is true }}",
    "items": "{% for t in tools or [] %}{% for k, v in t.function.parameters.properties | items %}"
    "{{ k }}={{ v.type }} {% endfor %}{% for k, v in t.function.items() %}{{ k }};{% endfor %}"
    "{% endfor %}{{ {} | items | list }}",
    "selecting": "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
    "{{ messages | rejectattr('role', 'eq', 'user') | map(attribute='role') | join('+') }}"
    "{{ messages | selectattr('tool_calls', 'defined') | list | length }}"
    "{{ [1, none, 2] | select | list }}{{ ['a', ''] | reject('equalto', '') | list }}"
    "{{ messages | map(attribute='name', default='?') | list }}",
    "content_parts": "{% for m in messages %}{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for p in m.content %}{% if p.type == 'text' %}<{{ p.text }}>{% endif %}"
    "{% endfor %}{% endif %}\n{% endfor %}",
    "text_methods": _each(
        "(m.role.strip('u') ~ m.role.lstrip('us') ~ m.role.rstrip('r') ~ m.role.split('s')"
        " ~ m.role.startswith('us') ~ m.role.endswith(('r', 'm')) ~ m.role.upper() ~ m.role.title()"
        " ~ m.role.capitalize() ~ m.role.find('e') ~ m.role.replace('e', '3', "
        "1) ~ m.role.count('s')"
        " ~ m.role.partition('s') ~ m.role.removeprefix('u') ~ m.role.splitlines()"
        " ~ m.role.isalpha() ~ m.role.center(12) ~ m.role.ljust(10, '.') ~ m.role.zfill(11))"
    ),
    "format": "{{ '%s|%05.1f|%x|%-4s|' % ('a', 2.25, 255, 'b') }}{{ '%s-%s' | format(1, none) }}"
    "{{ '{0} {1!r} {n:>6}'.format('a', 'b', n=3) }}"
    "{{ '{:.2f} {:,}'.format(1.005, 12345) }}",
    "concatenation": _each("m.role ~ 1 ~ none ~ 2.5 ~ true ~ [1] ~ {'a': 'b'}"),
    "dictsort": "{{ {'b': 1, 'A': 3, 'c': 2} | dictsort }}{{ {'b': 1, 'a': 3} | "
    "dictsort(by='value', "
    "reverse=true) }}{{ {'b': 1, 'A': 3} | dictsort(true) }}",
    "trim_and_default": _each(
        "m.x | default('d') ~ ('' | default('e', true)) ~ '  a ' | trim ~ '_'"
    )
    + "{{ 'xxaxx' | trim('x') }}",
    "set_blocks": "{% set head %}\n<{{ messages[0].role }}>\n{% endset %}{{ "
    "head }}{{ head | upper }}"
    "{% set a, b = 1, 2 %}{{ a + b }}{% set shouted | upper %}said {{ a }}{% "
    "endset %}{{ shouted }}",
    "call_blocks": "{% macro box(title, n=2) %}[{{ title * n }}: {{ caller('x') }}]{% endmacro %}"
    "{% call(it) box('t') %}{{ it }}{{ messages | length }}{% endcall %}",
    "macros": "{%- macro show(m, depth=0) -%}{{ m.role }}{{ depth }}{{ varargs }}{{ kwargs }}"
    "{%- if depth < 2 %}{{ show(m, depth + 1) }}{% endif %}{%- endmacro -%}"
    "{% for m in messages %}{{ show(m) }}{{ show(m, 2, 3, k=4) }}\n{% endfor %}{{ show.name }}"
    "{{ show.arguments }}",
    "filter_blocks": "{% filter upper | replace('U', '_') %}{% for m in messages %}{{ m.role }}"
    "{% endfor %}{% endfilter %}",
    "with_blocks": "{% with a=1, b=messages %}{{ a }}{{ b | length }}{% endwith "
    "%}{{ a is defined }}",
    "inline_if": _each("'s' if m.role == 'system' else ('u' if m.role == 'user')"),
    "whitespace": "  {%- if true %}\n    a\n  {% endif +%}  \n  {# a comment "
    "#}\n b {{- ' c ' -}} \n d"
    "{% raw %}{{ not this }}{% endraw %}\n",
    "numbers": "{{ 7 // 2 }}{{ 7 / 2 }}{{ 2 ** 5 }}{{ -7 % 3 }}{{ 1.0 }}{{ 1e20 }}{{ 10 | float }}"
    "{{ '12' | int + 1 }}{{ 'x' | int(5) }}{{ 2.567 | round(1) }}{{ -3 | abs }}{{ [1, 2] | sum }}",
    "lists": "{{ [3, 1, 2] | sort }}{{ ['b', 'A'] | sort }}{{ [1, 2, 2] | unique | list }}"
    "{{ [1, 2, 3] | first }}{{ [1, 2, 3] | last }}{{ [1, 2] + [3] }}{{ [1] * 3 }}{{ (1, 2)[0] }}"
    "{{ 'abc' | list }}{{ [3, 1] | min }}{{ [3, 1] | max }}{{ 'abc' | reverse }}{{ 2 in [1, 2] }}"
    "{{ [1, 2, 3, 4, 5] | batch(2, 0) | list }}{{ [1, 2, 3] | slice(2) | list }}"
    "{{ [{'a': 1, 'b': 2}, {'a': 1, 'b': 3}] | groupby('a') }}{{ [[1], [2]] | sum(start=[]) }}"
    "{{ range(3) | list }}{{ range(5, 1, -2) | list }}",
    "keywords": "{{ [1, 2, 3] | batch(linecount=2, fill_with=0) | list }}"
    "{{ [1, 2, 3] | slice(slices=2) | list }}{{ 'a' | center(width=5) }}{{ ['a'] | join(d='-') }}"
    "{{ 'a-b' | replace(old='-', new='+', count=1) }}"
    "{{ 2.55 | round(precision=1, method='floor') }}"
    "{{ 'xa' | trim(chars='x') }}{{ 'a\nb' | indent(width=1, first=true, blank=true) }}"
    "{{ [{'a': 1}, {'a': 2}] | sum(attribute='a', start=5) }}"
    "{{ [{'a': 2}, {'a': 1}] | sort(attribute='a', reverse=true) }}"
    "{{ ['b', 'A'] | sort(case_sensitive=true) }}"
    "{{ [{'a': 1}] | groupby(attribute='b', default=0) }}"
    "{{ ['A', 'a'] | unique(case_sensitive=false) | list }}{{ 'x' | int(default=3, base=16) }}"
    "{{ [{'a': 3}, {'a': 1}] | min(attribute='a') }}{{ 'a b c' | truncate(length=4, end='.') }}",
    "mappings": "{% set d = dict(a=1, b={'c': 2}) %}{{ d.b.c }}{{ d['a'] }}{{ d.get('x', 'y') }}"
    "{{ d.keys() | list }}{{ d.values() | list }}{{ 'a' in d }}{{ d | length }}{{ d.missing }}"
    "{{ dict.fromkeys(['p', 'q'], 0) }}{{ dict(d, e=5) }}{{ d.copy() == d }}{{ "
    "d | attr('nothing') }}",
    "other_filters": "{{ 'a b' | title }}{{ 'a' | center(5) }}|{{ '<b>' | e "
    "}}{{ '<b>' | forceescape }}"
    "{{ 'one two three four' | truncate(12) }}{{ 'a b c' | wordcount }}{{ 'a b&' | urlencode }}"
    "{{ 'a\nb' | indent(2, true) }}{{ 'aB' | lower }}{{ 'a' | string }}{{ 12345 | filesizeformat }}"
    "{{ 'safe' | safe }}{{ 'x' | d('y') }}{{ [1, 2] | count }}{{ 'ab' | capitalize }}",
    "joiners_and_cyclers": "{% set sep = joiner('; ') %}{% set c = cycler('x', 'y') %}"
    "{% for m in messages %}{{ sep() }}{{ m.role }}{{ c.next() }}{{ c.current }}{% endfor %}",
    "special_tokens": "{{ bos_token }}{{ eos_token }}{{ pad_token is defined }}{{ documents }}"
    "{{ add_generation_prompt }}{{ tools is none }}",
    "variables": "{{ enable_thinking | default('unset') }}{% if enable_thinking is defined and "
    "enable_thinking is false %}off{% endif %}{{ reasoning_effort | default('medium') }}",
    "reasoning": _each(
        "(m.reasoning_content or '') ~ (m.thinking or '') ~ ('reasoning_content' in m)"
    ),
    "calls": _each(
        "m.tool_calls | default([], true) | map(attribute='function') | map(attribute='name')"
        " | join(',') ~ (m.tool_calls[0].function.arguments | tojson if m.tool_calls)"
    ),
    "undefined_in_a_sum": _each("'x' + m.no_such_field"),
    "sandbox": "{{ messages.append(1) }}",
    "escapes": "{{ ''.__class__.__mro__ }}{{ messages.__class__ }}",
}
