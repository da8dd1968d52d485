"""Events of an answer while it comes: their order, and that they add up to its items."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest

from isthmus.model.forms import Arguments, CallBegins, CallEnds, Event, Reasoning, Text
from isthmus.server.generation.prepared import Step
from isthmus.server.generation.request import End
from isthmus.server.generation.tokens import Token
from isthmus.server.responses.output import Output, Telling
from isthmus.server.responses.sealing import seal
from isthmus.server.responses.tools import Origin, offer_of

TOOLS = offer_of(
    [
        {"type": "function", "name": "f"},
        {"type": "custom", "name": "run"},
        {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "g"}]},
    ]
)
CALL = [CallBegins(0, "f"), Arguments(0, '{"a"'), Arguments(0, ": 1}"), CallEnds(0)]


def make_id(kind: str, n: int) -> str:
    return f"{kind}-{n}"


def told(
    events: list[list[Event]], telling: Telling | None = None, reason: str = "stop"
) -> tuple[Output, list[tuple[str, dict[str, Any]]]]:
    output = Output(telling or Telling(make_id, TOOLS))
    found = []
    for n, each in enumerate(events):
        found += list(output.feed(Step(Token(n, "", -0.5), tuple(each))))
    found += list(output.end(End(reason, len(events), 0)))
    return output, found


def kinds(found: list[tuple[str, dict[str, Any]]]) -> list[str]:
    return [kind for kind, _ in found]


def test_a_message() -> None:
    output, found = told([[Text("Hel")], [], [Text("lo")]])
    assert kinds(found) == [
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
    ]
    assert all(it["output_index"] == 0 for _, it in found)
    assert all(it.get("item_id", "message-0") == "message-0" for _, it in found)
    assert found[0][1]["item"]["content"] == []
    assert found[-1][1]["item"] == output.items[0]
    assert output.items[0]["content"][0]["text"] == "Hello"
    assert output.items[0]["status"] == "completed"


def test_a_thought_a_text_and_calls() -> None:
    second = [CallBegins(1, "g"), CallEnds(1)]
    output, found = told([[Reasoning("hm")], [Text("so")], CALL, second])
    assert [it["type"] for it in output.items] == ["reasoning", "message", *["function_call"] * 2]
    assert kinds(found)[:6] == [
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
    ]
    assert kinds(found)[12:17] == [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ]
    assert output.items[2]["arguments"] == '{"a": 1}'
    assert output.items[2]["name"] == "f"
    assert output.items[2]["call_id"] != output.items[3]["call_id"]
    assert "namespace" not in output.items[2]


def test_calls_are_told_by_the_names_that_callers_gave() -> None:
    output, _ = told([[CallBegins(0, "n__g"), Arguments(0, "{}"), CallEnds(0)]])
    assert (output.items[0]["namespace"], output.items[0]["name"]) == ("n", "g")


def test_the_input_of_a_custom_tool_streams() -> None:
    parts = [Arguments(0, it) for it in ('{"inp', 'ut": "a\\', "nb", '"}')]
    output, found = told([[CallBegins(0, "run")], *[[it] for it in parts], [CallEnds(0)]])
    deltas = [it["delta"] for kind, it in found if kind == "custom_tool_call_input.delta"]
    assert deltas == ["a", "\nb"]
    assert output.items[0]["input"] == "a\nb"
    assert kinds(found)[-2:] == ["custom_tool_call_input.done", "output_item.done"]
    assert found[-2][1]["input"] == "a\nb"


def test_an_answer_can_be_the_input_of_a_custom_tool() -> None:
    telling = Telling(make_id, TOOLS, Origin("run", None, True))
    output, _ = told([[Reasoning("hm")], [Text(" x")], [Text("y")]], telling)
    assert [it["type"] for it in output.items] == ["reasoning", "custom_tool_call"]
    assert output.items[1]["input"] == " xy"
    output, _ = told([], telling)
    assert output.items[0]["input"] == ""


def test_a_thought_as_its_summary_and_sealed() -> None:
    telling = Telling(make_id, TOOLS, in_summary=True, sealed=True)
    output, found = told([[Reasoning("h")], [Reasoning("m")]], telling)
    assert kinds(found) == [
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
    ]
    assert output.items[0]["summary"] == [{"type": "summary_text", "text": "hm"}]
    assert output.items[0]["encrypted_content"] == seal("hm")
    assert "content" not in output.items[0]


@pytest.mark.parametrize(
    ("events", "texts"),
    [
        ([[Text("\n\n")], [Text("a")], [Text(" ")]], ["\n\na "]),
        ([[Text("\n")], CALL, [Text("\n")]], []),
        ([[Reasoning("x")], [Text("\n")], [Text("b")]], ["\nb"]),
        ([[Text(" ")]], [" "]),
        ([], []),
    ],
)
def test_white_space_alone_is_no_message_beside_others(
    events: list[list[Event]], texts: list[str]
) -> None:
    output, _ = told(events)
    messages = [it for it in output.items if it["type"] == "message"]
    assert [it["content"][0]["text"] for it in messages] == texts


def test_what_a_limit_cuts_off_is_incomplete() -> None:
    output, _ = told([[Text("a")]], reason="length")
    assert output.items[0]["status"] == "incomplete"
    cut = [CallBegins(0, "f"), Arguments(0, '{"a"'), CallEnds(0, whole=False)]
    output, _ = told([[Text("a")], cut], reason="length")
    assert [it["status"] for it in output.items] == ["completed", "incomplete"]
    assert output.items[1]["arguments"] == '{"a"'


def test_tokens_of_thoughts_are_counted() -> None:
    events = [[Reasoning("a")], [], [Reasoning("b")], [], [Text("c")], []]
    assert told(events)[0].n_thought == 4
    assert told([[], [Text("c")]], Telling(make_id, in_thought=True))[0].n_thought == 1
    assert told([[], [Text("c")]])[0].n_thought == 0


def test_logprobs_are_of_the_text_that_is_told() -> None:
    telling = Telling(make_id, TOOLS, logprob=lambda it: {"token": it.id})  # type: ignore[typeddict-item,arg-type,return-value]
    output, found = told([[Reasoning("x")], [], [Text("ab")], [], [Text("c")], CALL], telling)
    message = output.items[1]["content"][0]
    assert [it["token"] for it in message["logprobs"]] == [1, 2, 3, 4]
    deltas = [it["logprobs"] for kind, it in found if kind == "output_text.delta"]
    assert [it["token"] for it in itertools.chain(*deltas)] == [1, 2, 3, 4]
    assert (
        next(it for kind, it in found if kind == "output_text.done")["logprobs"]
        == (message["logprobs"])
    )


def made_up(seed: int) -> Iterator[list[Event]]:
    """Steps as a parser could give them."""
    dice = random.Random(seed)
    n_calls = 0
    for _ in range(dice.randrange(12)):
        match dice.randrange(4):
            case 0:
                yield [Text(dice.choice(["a", "\n", " b", "\n\nc"]))]
            case 1:
                yield [Reasoning("t")]
            case 2:
                name = dice.choice(["f", "run", "n__g", "unknown"])
                yield [CallBegins(n_calls, name)]
                for part in ('{"input"', ": ", '"x"}')[: dice.randrange(4)]:
                    yield [Arguments(n_calls, part)]
                yield [CallEnds(n_calls, dice.random() < 0.8)]
                n_calls += 1
            case _:
                yield []


@pytest.mark.parametrize("seed", range(150))
def test_events_add_up_to_the_items(seed: int) -> None:
    telling = Telling(make_id, TOOLS, in_summary=seed % 2 == 0, sealed=seed % 3 == 0)
    output, found = told(list(made_up(seed)), telling, ["stop", "length"][seed % 2])
    texts: dict[int, str] = {}
    open_items: list[int] = []
    for kind, fields in found:
        at = fields["output_index"]
        if kind == "output_item.added":
            assert at == len(texts)
            assert open_items == []
            open_items, texts[at] = [at], ""
        elif kind == "output_item.done":
            assert fields["item"] == output.items[at]
            open_items.remove(at)
        else:
            assert open_items == [at]
            assert fields["item_id"] == output.items[at]["id"]
            texts[at] += fields.get("delta", "")
    assert open_items == []
    assert len(texts) == len(output.items)
    for at, item in enumerate(output.items):
        assert texts[at] == whole_text(item)
        assert item["status"] in ("completed", "incomplete")


def whole_text(item: dict[str, Any]) -> str:
    for key in ("arguments", "input"):
        if key in item:
            return str(item[key])
    parts = item.get("content") or item["summary"]
    return "".join(it["text"] for it in parts)
