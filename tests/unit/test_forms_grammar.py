"""Grammars that force calls: they compile, and what they let through is a call by the schema."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import jsonschema
import llguidance
import numpy as np
import pytest

from isthmus.abi import GrammarKind
from isthmus.errors import Cancelled, GrammarError, SettingsError
from isthmus.model.forms import PLAIN, Form, Reasoning, SchemaCheck, Thought
from isthmus.model.forms.thought_forms import THOUGHTS
from isthmus.model.sampling import grammar_source
from isthmus.model.schemas import rules
from isthmus.model.schemas.patterns import Bytes
from tests.unit.forms_text import BARE, FORMS, WRITERS, Call, called, in_pieces, whole

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "tag": {"type": "string", "enum": ["a", "b c", 'é"}']},
        "city": {"type": "string", "maxLength": 6},
        "days": {"type": "integer", "minimum": -5, "maximum": 400},
        "exact": {"type": "boolean"},
        "where": {
            "type": "object",
            "properties": {
                "lat": {"type": "number", "minimum": 0, "maximum": 9},
                "names": {"type": "array", "items": {"$ref": "#/$defs/name"}, "maxItems": 2},
            },
            "required": ["lat"],
            "additionalProperties": False,
        },
    },
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"name": {"type": "string", "maxLength": 3}},
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "stop"}},
]
OPEN = [{"name": "note", "parameters": {"type": "object", "properties": {
    "text": {"type": "string"}, "n": {"type": ["integer", "null"]}, "any": {}},
    "required": ["text"]}}]  # fmt: skip
pytestmark = pytest.mark.slow  # each takes less, all together half a minute
ALL = pytest.mark.parametrize("name", sorted(WRITERS))
THINK = Thought("<think>", "</think>")


def complaint(kind: GrammarKind, source: str) -> str:
    job = json.dumps({"kind": kind.name.lower(), "source": source}).encode()
    return json.loads(grammar_source.try_out(job))["problem"]


@cache
def vocabulary() -> llguidance.LLTokenizer:
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()), n_vocab=257)


def matcher(grammar: tuple[GrammarKind, str]) -> llguidance.LLMatcher:
    compiled = grammar_source.compile_source(grammar[0].name.lower(), grammar[1])
    found = llguidance.LLMatcher(vocabulary(), compiled, log_level=0)
    assert not found.is_error(), (found.get_error(), grammar[1])
    return found


def write(grammar: tuple[GrammarKind, str], rng: np.random.Generator, begin: str = "") -> str:
    """A text of bytes at random that the grammar lets through, after `begin`."""
    going, text = matcher(grammar), bytearray(begin.encode())
    assert going.try_consume_tokens(list(text)) == len(text)
    while len(text) < 4000:
        bits = np.frombuffer(going.compute_bitmask(), np.uint8)
        allowed = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
        if 256 in allowed and (len(allowed) == 1 or rng.random() < 0.5):
            break
        token = int(rng.choice(allowed[allowed < 256]))
        assert going.try_consume_tokens([token]) == 1
        text.append(token)
    return text.decode()


def accepts(grammar: tuple[GrammarKind, str], text: str) -> bool:
    going, data = matcher(grammar), list(text.encode())
    return going.try_consume_tokens(data) == len(data) and going.is_accepting()


def check(call: Call) -> None:
    schema = {"weather": SCHEMA, "stop": {"maxProperties": 0}}[call[0]]
    jsonschema.validate(call[1], schema)


@ALL
def test_what_a_grammar_lets_through_is_a_call_by_the_schema(name: str) -> None:
    rng, form, seen = np.random.default_rng(3), FORMS[name], set()
    grammar = form.grammar(TOOLS)
    assert complaint(*grammar) == ""
    for _ in range(8):
        text = write(grammar, rng)
        (call,) = called(in_pieces(form.parser(TOOLS, forced=True), text))
        check(call)
        seen.add(call[0])
    assert seen == {"weather", "stop"}


@ALL
def test_a_named_function_and_no_other(name: str) -> None:
    form = FORMS[name]
    grammar = form.grammar(TOOLS, "stop")
    text = write(grammar, np.random.default_rng(0))
    assert called(whole(form.parser(TOOLS, forced=True), text)) == [("stop", {})]
    with pytest.raises(SettingsError, match="there is no tool called go"):
        form.grammar(TOOLS, "go")
    with pytest.raises(SettingsError, match="there is no tool"):
        form.grammar([])


@ALL
def test_several_calls(name: str) -> None:
    rng, form, most = np.random.default_rng(5), FORMS[name], 0
    grammar = form.grammar(TOOLS, several=True)
    assert complaint(*grammar) == ""
    for _ in range(12):
        events = whole(form.parser(TOOLS, forced=True), write(grammar, rng))
        calls = called(events)
        assert len(events) == 3 * len(calls)
        most = max(most, len(calls))
    assert most >= 2


def laid_out(name: str, calls: Sequence[Call]) -> str:
    """Calls in the layout that the grammar has, which is that of the models' own templates save
    for some white space and Python's quotes."""
    text = WRITERS[name](calls)
    text = text.replace("[TOOL_CALLS] [", "[TOOL_CALLS][")
    if name == "deepseek-v3":
        end = "<｜tool▁calls▁end｜>"
        text = text.replace(f"\n{end}", end)
    if name == "harmony":
        text = text.removesuffix("<|call|>")  # it ends the text
    if name in ("lfm2", "olmo3", "gemma3", "llama4", "python-list"):
        text = text.replace("'", '"')
    return text


@ALL
def test_calls_as_models_write_them_are_let_through(name: str) -> None:
    call = ("weather", {"city": "Ås", "days": 3})
    assert accepts(FORMS[name].grammar(TOOLS), laid_out(name, [call]))
    text = laid_out(name, [call, ("stop", {}), call])
    assert accepts(FORMS[name].grammar(TOOLS, several=True), text), text
    assert not accepts(FORMS[name].grammar(TOOLS), text)
    assert not accepts(FORMS[name].grammar(TOOLS, "stop"), laid_out(name, [call]))


@ALL
def test_names_and_values_may_begin_like_others(name: str) -> None:
    properties = {
        "a": {"enum": ["x", "xx", "x x"]},
        "ab": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2},
        "abc": {"type": "integer"},
    }
    schema = {"type": "object", "properties": properties}
    names = [it for it in ("f", "ff", "f-f", "f_") if name != "olmo3" or it.isidentifier()]
    tools = [{"name": it, "parameters": schema} for it in names]
    grammar = FORMS[name].grammar(tools, several=True)
    values = (
        {"a": "x"},
        {"a": "xx", "abc": 1},
        {"a": "x x", "ab": [1]},
        {"ab": [1]},
        {"abc": 12},
        {},
    )
    calls = [(it, values[(n + k) % 6]) for k in range(6) for n, it in enumerate(names)]
    text = laid_out(name, calls[:9])
    assert accepts(grammar, text), text
    assert called(whole(FORMS[name].parser(tools, forced=True), text)) == calls[:9]
    assert not accepts(grammar, laid_out(name, [("f", {"ab": []})]))
    assert not accepts(grammar, laid_out(name, [("f", {"a": "y"})]))
    assert not accepts(grammar, laid_out(name, [("g", {})]))


@ALL
def test_a_schema_without_bounds_can_be_tried_out(name: str) -> None:
    grammar = FORMS[name].grammar(OPEN)
    assert complaint(*grammar) == ""
    text = WRITERS[name]([("note", {"text": 'x "y" <z> {', "n": 5})])
    assert called(whole(FORMS[name].parser(OPEN), text))[0][1]["n"] == 5


@pytest.mark.parametrize("row", THOUGHTS, ids=lambda it: it.name)
def test_a_thought_may_come_first(row) -> None:
    calls = FORMS["harmony"].calls if row.name == "harmony" else FORMS["hermes"].calls
    form, rng = Form("", calls, row.thought), np.random.default_rng(1)
    inside = f"Hm, é\n{row.thought.close_text}"
    opened = form.grammar(TOOLS, "stop", in_thought=True)
    text = write(opened, rng, begin=inside)
    events = whole(form.parser(TOOLS, in_thought=True, forced=True), text)
    assert events[0] == Reasoning("Hm, é")
    assert called(events) == [("stop", {})]
    may = form.grammar(TOOLS, "stop", may_think=True)
    text = write(may, rng, begin=row.thought.open_text + inside)
    assert whole(form.parser(TOOLS, forced=True), text) == events
    own = write(form.grammar(TOOLS, "stop"), rng)
    assert accepts(may, own)
    assert not accepts(form.grammar(TOOLS, "stop"), text)


def test_control_tokens_are_written_as_tokens() -> None:
    form = FORMS["mistral-args"]
    _, source = form.grammar(TOOLS, "stop", ids={"[TOOL_CALLS]": 9, "[ARGS]": 32})
    assert source.splitlines()[0] == "start: r2"
    assert '<[9]> "stop" <[32]> r1' in source
    _, spelled = form.grammar(TOOLS, "stop")
    assert '"[TOOL_CALLS]stop[ARGS]" r1' in spelled


@ALL
def test_calls_with_their_control_tokens_are_let_through(name: str) -> None:
    """0xFF stands for each control token: as a byte, no text has it."""
    form = FORMS[name]
    ids = {it: 0xFF for it in form.controls if it[0] in "<[｜" and it[-1] in ">]｜"}
    longest = sorted(ids, key=len, reverse=True)
    text = laid_out(name, [("weather", {"city": "Å<>", "days": 3}), ("stop", {})])
    data = re.sub("|".join(map(re.escape, longest)) or "(?!)", "\0", text).encode()
    tokens = [it or 0xFF for it in data]
    assert (0xFF in tokens) == bool(ids) or name in BARE
    going = matcher(form.grammar(TOOLS, several=True, ids=ids))
    assert going.try_consume_tokens(tokens) == len(tokens)
    assert going.is_accepting()


@ALL
def test_odd_names_keys_and_values_are_forced_in_some_way(name: str) -> None:
    words = ["", "<|end|>", "[ARGS]", '<|"|>', "a\nb", '"', "\\", "</parameter>"]
    properties = {"a b": {"enum": words}, '"k" <x>,:': {"type": "integer"}}
    schema = {"type": "object", "properties": properties, "required": [*properties]}
    rng, form = np.random.default_rng(8), FORMS[name]
    for function in ("f", "f g(<|end|>)"):
        tools = [{"name": function, "parameters": schema}]
        grammar = form.grammar(tools, ids={it: 0xFF for it in form.controls if it == "[ARGS]"})
        assert complaint(*grammar) == ""
    for function in ("f", "f g(<|end|>)"):
        tools = [{"name": function, "parameters": schema}]
        text = write(form.grammar(tools), rng)
        ((called_name, arguments),) = called(whole(form.parser(tools, forced=True), text))
        assert called_name == function
        jsonschema.validate(arguments, schema)


def test_a_model_without_calls_writes_bare_json() -> None:
    rng = np.random.default_rng(2)
    for several in (False, True):
        grammar = PLAIN.grammar(TOOLS, several=several)
        text = write(grammar, rng)
        assert text[0] == ("[" if several else "{")
        for call in json.loads(text) if several else [json.loads(text)]:
            check((call["name"], call["arguments"]))
        assert called(whole(PLAIN.parser(TOOLS, forced=True), text))


@ALL
def test_references_within_a_schema_hold_where_it_is_put(name: str) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [1, 2]}, "b": {"$ref": "#/properties/a"}},
        "required": ["a", "b"],
    }
    tools = [{"name": "f", "parameters": schema}]
    text = write(FORMS[name].grammar(tools), np.random.default_rng(4))
    ((_, arguments),) = called(whole(FORMS[name].parser(tools, forced=True), text))
    jsonschema.validate(arguments, schema)


def test_a_schema_that_is_too_deep_is_refused() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(2000):
        schema = {"type": "object", "properties": {"a": schema}}
    for name in ("hermes", "gemma4", "glm", "lfm2", "harmony", "kimi-k2"):
        with pytest.raises(GrammarError, match="deep"):
            FORMS[name].grammar([{"name": "f", "parameters": schema}])


def test_schemas_that_refer_to_large_ones_in_many_places_are_refused() -> None:
    large = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(500)}}
    schema = {
        "type": "object",
        "properties": {f"q{n}": {"$ref": "#/$defs/large"} for n in range(500)},
        "$defs": {"large": large},
    }
    for name in ("glm", "lfm2"):
        with pytest.raises(GrammarError, match="too large"):
            FORMS[name].grammar([{"name": "f", "parameters": schema}])


def intricate(n: int) -> dict[str, Any]:
    """A schema with alternatives of which each combination is one."""
    one = {f"{i}": {"type": "integer"} for i in range(n)}
    three = [{"anyOf": [{"required": [f"{i}"]}, {"minProperties": i}, {}]} for i in range(n)]
    return {"type": "object", "properties": one, "allOf": three}


def test_who_no_longer_wants_a_grammar_ends_the_work_on_it() -> None:
    """The event loop, which has no more than milliseconds for it, among others."""
    n_steps = 0

    def check() -> None:
        nonlocal n_steps
        n_steps += 1
        if n_steps > 100:
            raise Cancelled("enough")

    tools = [{"function": {"name": "f", "parameters": intricate(10)}}]
    with pytest.raises(Cancelled, match="enough"):
        PLAIN.grammar(tools, check=SchemaCheck(check=check))
    assert n_steps == 101


def test_all_schemas_of_a_grammar_together_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them takes little time, and little of the grammar."""
    monkeypatch.setattr(rules, "_MAX_STEPS", 2000)
    one = {"allOf": [{"enum": list(range(100))}, {"enum": [1]}]}
    schema = {"type": "object", "properties": {"a": one}}
    tools = [{"function": {"name": f"f{n}", "parameters": schema}} for n in range(50)]
    assert PLAIN.grammar(tools[:5], several=True)
    with pytest.raises(GrammarError, match="too large or too intricate"):
        PLAIN.grammar(tools, several=True)


def test_a_schema_that_refers_to_itself_is_one_rule() -> None:
    of = {"type": "array", "items": {"$ref": "#/$defs/tree"}}
    tree = {"type": "object", "properties": {"v": {"type": "integer"}, "of": of}}
    schema: dict[str, Any] = {"type": "object", "properties": {"t": {"$ref": "#/$defs/tree"}}}
    schema["$defs"] = {"tree": tree}
    tools = [{"name": "f", "parameters": schema}]
    arguments = {"t": {"v": 1, "of": [{"of": [{"v": 2}, {}]}]}}
    for name in sorted(WRITERS):
        grammar = FORMS[name].grammar(tools)
        assert complaint(*grammar) == ""
        assert accepts(grammar, laid_out(name, [("f", arguments)])), name
    assert len(FORMS["gemma4"].grammar(tools)[1]) < 1000
