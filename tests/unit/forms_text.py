"""Answers in the forms that models write, made from calls as data, for tests of the parsers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from isthmus.model.forms import Arguments as Part
from isthmus.model.forms import CallBegins, CallEnds, Event, Form, Parser, joined
from isthmus.model.forms.call_forms import CALLS

Call = tuple[str, dict[str, Any]]
FORMS = {it.name: Form(it.name, calls=it.calls) for it in CALLS}
"""Each notation of calls, without thoughts."""

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "exact": {"type": "boolean"},
        "share": {"type": "number"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "where": {
            "type": "object",
            "properties": {"lat": {"type": "number"}, "name": {"type": "string"}},
            "required": ["lat"],
            "additionalProperties": False,
        },
        "note": {"type": ["string", "null"]},
    },
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "get_time-2", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "no_arguments"}},
]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _objects(name: str = "name", arguments: str = "arguments") -> Callable[[Sequence[Call]], list]:
    return lambda calls: [_json({name: a, arguments: b}) for a, b in calls]


def _list(begin: str, end: str, name: str = "name", arguments: str = "arguments") -> Any:
    return lambda calls: f"{begin}[{', '.join(_objects(name, arguments)(calls))}]{end}"


def _named(section: str, call: str, end: str, section_end: str) -> Any:
    """`call` has {name}, {n} and {arguments} in it."""

    def write(calls: Sequence[Call]) -> str:
        parts = [
            call.replace("{name}", a).replace("{n}", str(n)).replace("{arguments}", _json(b)) + end
            for n, (a, b) in enumerate(calls)
        ]
        return section + "".join(parts) + section_end

    return write


def _xml(section: str, call: str, value: str, call_end: str, end: str, each: bool = False) -> Any:
    """`call` has {name}, `value` {key}, {value} and {is_string} in it."""

    def one(a: str, b: dict[str, Any]) -> str:
        values = "".join(
            value.replace("{is_string}", "true" if isinstance(it, str) else "false")
            .replace("{key}", key)
            .replace("{value}", it if isinstance(it, str) else _json(it))
            for key, it in b.items()
        )
        return call.replace("{name}", a) + values + call_end

    def write(calls: Sequence[Call]) -> str:
        if each:
            return "\n".join(section + one(*it) + end for it in calls)
        between = "" if section else "\n"
        return section + between.join(one(*it) for it in calls) + end

    return write


def _python(begin: str, end: str, between: str = ", ") -> Any:
    def write(calls: Sequence[Call]) -> str:
        said = [f"{a}({', '.join(f'{k}={v!r}' for k, v in b.items())})" for a, b in calls]
        return begin + between.join(said) + end

    return write


def _bare(value: object, quote: str) -> str:
    if isinstance(value, str):
        return f"{quote}{value}{quote}"
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{_bare(v, quote)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_bare(it, quote) for it in value) + "]"
    return json.dumps(value)


def _bare_calls(begin: str, end: str, quote: str) -> Any:
    return lambda calls: "".join(f"{begin}call:{a}{_bare(b, quote)}{end}" for a, b in calls)


_KEYED = "<{0}arg_key>{{key}}</{0}arg_key>\n<{0}arg_value>{{value}}</{0}arg_value>\n"
_DSML = '<｜DSML｜parameter name="{key}" string="{is_string}">{value}</｜DSML｜parameter>\n'


def _dsml(section: str) -> Any:
    return _xml(f"<｜DSML｜{section}>\n", '<｜DSML｜invoke name="{name}">\n', _DSML,
                "</｜DSML｜invoke>\n", f"</｜DSML｜{section}>")  # fmt: skip


_V3, _V3_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
WRITERS: dict[str, Callable[[Sequence[Call]], str]] = {
    "harmony": lambda calls: "<|start|>assistant".join(
        f"<|channel|>commentary to=functions.{a} <|constrain|>json<|message|>{_json(b)}<|call|>"
        for a, b in calls
    ),
    "gemma4": _bare_calls("<|tool_call>", "<tool_call|>", '<|"|>'),
    "functiongemma": _bare_calls("<start_function_call>", "<end_function_call>", "<escape>"),
    "deepseek-dsml": _dsml("function_calls"),
    "deepseek-dsml-tools": _dsml("tool_calls"),
    "deepseek-v3": _named(
        _V3,
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```",
        "<｜tool▁call▁end｜>\n",
        _V3_END,
    ),
    "deepseek-v3.1": _named(
        _V3,
        "<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{arguments}",
        "<｜tool▁call▁end｜>",
        _V3_END,
    ),
    "kimi-k2": _named(
        "<|tool_calls_section_begin|>",
        "<|tool_call_begin|>functions.{name}:{n}<|tool_call_argument_begin|>{arguments}",
        "<|tool_call_end|>",
        "<|tool_calls_section_end|>",
    ),
    "minimax-m2": _xml("<minimax:tool_call>\n", '<invoke name="{name}">\n',
                       '<parameter name="{key}">{value}</parameter>\n', "</invoke>\n",
                       "</minimax:tool_call>"),
    "seed": _xml("<seed:tool_call>\n", "<function={name}>\n",
                 "<parameter={key}>{value}</parameter>\n", "</function>\n", "</seed:tool_call>",
                 each=True),
    "longcat": _xml("", "<longcat_tool_call>{name}\n", _KEYED.format("longcat_"),
                    "</longcat_tool_call>", ""),
    "hunyuan-keys": _xml("<tool_calls>\n", "<tool_call>{name}<tool_sep>\n", _KEYED.format(""),
                         "</tool_call>\n", "</tool_calls>"),
    "glm": _xml("", "<tool_call>{name}\n", _KEYED.format(""), "</tool_call>", ""),
    "qwen3-coder": _xml("<tool_call>\n", "<function={name}>\n",
                        "<parameter={key}>\n{value}\n</parameter>\n", "</function>\n",
                        "</tool_call>", each=True),
    "function-tag": _named("", "<function={name}>{arguments}", "</function>", ""),
    "mistral-id": _named("", "[TOOL_CALLS]{name}[CALL_ID]a1b2c3d4{n}[ARGS]{arguments}", "", ""),
    "mistral-args": _named("", "[TOOL_CALLS]{name}[ARGS]{arguments}", "", ""),
    "mistral": _list("[TOOL_CALLS] ", ""),
    "command-r7b": _list("<|START_ACTION|>", "<|END_ACTION|>", "tool_name", "parameters"),
    "command-r": _list("Action: ```json\n", "```", "tool_name", "parameters"),
    "nemotron": _list("<TOOLCALL>", "</TOOLCALL>"),
    "lfm2": _python("<|tool_call_start|>[", "]<|tool_call_end|>"),
    "apertus": lambda calls: f"<|tools_prefix|>{_json([{a: b} for a, b in calls])}<|tools_suffix|>",
    "internlm": lambda calls: "\n".join(
        f"<|action_start|><|plugin|>\n{it}<|action_end|>"
        for it in _objects(arguments="parameters")(calls)
    ),
    "phi4": _list("<|tool_call|>", "<|/tool_call|>"),
    "granite": _list("<|tool_call|>", ""),
    "granite-20b": lambda calls: "\n".join(f"<function_call> {it}" for it in _objects()(calls)),
    "hunyuan": _list("<tool_calls>", "</tool_calls>"),
    "hermes": lambda calls: "\n".join(
        f"<tool_call>\n{it}\n</tool_call>" for it in _objects()(calls)
    ),
    "olmo3": _python("<function_calls>\n", "\n</function_calls>", "\n"),
    "gemma3": _python("```tool_code\n", "\n```", "\n"),
    "llama4": _python("<|python_start|>[", "]<|python_end|>"),
    "llama3": lambda calls: "; ".join(_objects(arguments="parameters")(calls)),
    "python-list": _python("[", "]"),
}  # fmt: skip
"""By the form's name: calls as a model writes them."""
BARE = ("llama3", "python-list")
"""Forms whose calls have no marker, so that they begin an answer or are none."""


def whole(parser: Parser, text: str) -> list[Event]:
    """The events of a text that comes at once."""
    return joined([*parser.feed(text), *parser.end()])


def in_pieces(parser: Parser, pieces: Iterable[str]) -> list[Event]:
    """The events of a text that comes in pieces."""
    events = [event for piece in pieces for event in parser.feed(piece)]
    return joined([*events, *parser.end()])


def called(events: Sequence[Event]) -> list[Call]:
    """The whole calls among joined events, with arguments decoded."""
    found: list[Call] = []
    for n, event in enumerate(events):
        if isinstance(event, CallBegins):
            part, end = events[n + 1 : n + 3]
            assert isinstance(part, Part)
            assert end == CallEnds(event.index)
            assert event.index == part.index == len(found)
            found.append((event.name, json.loads(part.text)))
    return found
