"""Any text at all: parsers do not raise, lose nothing, and take time that grows with its length."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable
from functools import partial

import pytest

from isthmus.model.forms import Arguments, CallBegins, CallEnds, Event, Form, Parser, Text, Thought
from isthmus.model.forms.call_forms import CALLS
from isthmus.model.forms.thought_forms import THOUGHTS
from tests.unit.forms_text import BARE, FORMS, TOOLS, WRITERS, in_pieces, whole

pytestmark = pytest.mark.slow  # each takes less, all together half a minute
ALL = pytest.mark.parametrize("name", sorted(WRITERS))
THINK = Thought("<think>", "</think>")
WORDS = [
    "a", "weather", "get_time-2", "other", "city", "days", "x y", "é😀", " ", "  \n", "\n\n", "\t",
    "{", "}", "[", "]", "(", ")", '"', "'", '"""', "\\", "\\n", "\\u00e9", "\\ud800", ":", ": ",
    ",", ", ", "=", ";", "<", ">", "</", "|", "1", "-2.5e3", "true", "None", "null", '{"name": "',
    '"name": "weather"', '{"name": "weather", "arguments": {', '"city": "x"', '"arguments": ',
    "weather(", 'weather(city="', "to=functions.weather", "print(", "json", "```", "call:weather{",
]  # fmt: skip


def made(form: Form, rng: random.Random) -> str:
    """A text of the form's own markers, beginnings and ends of them, and whatever calls have."""
    markers = sorted(form.controls) or ["<x>"]  # a set's order is another one in each process
    words = []
    for _ in range(rng.randrange(1, 40)):
        word = rng.choice(markers if rng.random() < 0.4 else WORDS)
        cut = rng.randrange(len(word) + 1) if rng.random() < 0.1 else len(word)
        words.append(word[:cut])
    if rng.random() < 0.5:
        call = WRITERS[form.name.split("+")[0]]([("weather", {"city": "x", "tags": ["a"]})])
        words.insert(rng.randrange(len(words) + 1), call[: rng.randrange(len(call) + 1)])
    return "".join(words)


def with_thoughts(name: str) -> list[Form]:
    """A form as it is, with thoughts and texts between markers, and with thoughts anywhere."""
    calls, wraps = FORMS[name].calls, (("<answer>", "</answer>"),)
    anywhere = Thought("[THINK]", "[/THINK]", anywhere=True)
    return [
        FORMS[name],
        Form(f"{name}+think", calls, THINK, wraps),
        Form(f"{name}+anywhere", calls, anywhere, wraps),
    ]


def pieces(text: str, rng: random.Random) -> list[str]:
    cuts = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(6)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def require_sound(events: Iterable[Event]) -> None:
    n_calls, said = 0, None
    for event in events:
        if isinstance(event, CallBegins):
            assert said is None
            assert event.index == n_calls
            assert event.name in ("weather", "get_time-2", "no_arguments")
            said = ""
        elif isinstance(event, Arguments):
            assert said is not None
            assert event.index == n_calls
            said += event.text
        elif isinstance(event, CallEnds):
            assert said is not None
            if event.whole:
                assert isinstance(json.loads(said), dict)
            n_calls, said = n_calls + 1, None
        else:
            assert said is None
            assert event.text
    assert said is None


@ALL
def test_any_text_is_taken_apart_soundly_and_the_same_however_it_comes(name: str) -> None:
    rng = random.Random(name)
    n_calls = 0
    for form in with_thoughts(name):
        for _ in range(80):
            text, forced, in_thought = made(form, rng), rng.random() < 0.2, rng.random() < 0.2
            parser = partial(form.parser, TOOLS, in_thought=in_thought, forced=forced)
            events = whole(parser(), text)
            require_sound(events)
            assert in_pieces(parser(), pieces(text, rng)) == events
            assert in_pieces(parser(), text) == events
            n_calls += any(isinstance(it, CallBegins) for it in events)
            only_text = all(isinstance(it, Text) for it in events)
            if only_text and form.thought is None and name != "harmony":
                assert "".join(it.text for it in events if isinstance(it, Text)) == text
    assert n_calls >= 5


@ALL
def test_texts_without_markers_come_as_they_are(name: str) -> None:
    rng, form = random.Random(name), Form(name, FORMS[name].calls, THINK)
    for _ in range(60):
        text = "".join(rng.choice(WORDS) for _ in range(rng.randrange(30)))
        if name in BARE and text.strip()[:1] in ("{", "["):
            text = f"x{text}"
        if "```" in text and name in ("command-r", "gemma3"):
            continue
        assert whole(form.parser(TOOLS), text) == ([Text(text)] if text else [])


def steps(parser: Parser, texts: Iterable[str]) -> int:
    """Calls of functions, of Python's and of C's, and characters copied, that parsing takes."""
    n = 0

    def count(_frame: object, event: str, _arg: object) -> None:
        nonlocal n
        n += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        for text in texts:
            parser.feed(text)
        parser.end()
    finally:
        sys.setprofile(before)
    return n + parser.n_looked_at


def attacks(form: Form) -> list[str]:
    begin = form.calls.begins[0] if form.calls and form.calls.begins else ""
    call = WRITERS[form.name]([("weather", {"city": "x"})])
    return [
        begin,
        f"{begin} ",
        f'{begin}{{"arguments": {{"a": "',
        f'{begin}[{{"id": [[',
        call[:-1],
        call[: len(call) // 2],
        call.replace("weather", "other")[:-3],
        f"{begin}print(",
        f"{begin}weather(city=(",
        " ",
        "\n",
        "<",
        '{"name": ',
        "<think>",
        "</parameter>\n",
        "\\",
        "[",
    ]


@ALL
def test_the_time_grows_with_the_length_alone(name: str) -> None:
    form = FORMS[name]
    prefixes = ("", WRITERS[name]([("weather", {"city": "x"})])[:-12])
    for attack in attacks(form):
        for prefix in prefixes:
            counts = []
            for n in (150, 300):
                text = prefix + (attack * n)[:n]
                counts.append(steps(form.parser(TOOLS), text))
                counts.append(steps(form.parser(TOOLS), [text]))
            for short, long in ((counts[0], counts[2]), (counts[1], counts[3])):
                assert long <= 2.4 * short + 100, (attack, prefix, counts)


def test_the_count_of_steps_sees_what_is_quadratic() -> None:
    class Rereading:
        n_looked_at = 0
        text = ""

        def feed(self, piece: str) -> None:
            self.text += piece
            self.n_looked_at += len(self.text)

        def end(self) -> None:
            pass

    short, long = (steps(Rereading(), "x" * n) for n in (400, 800))  # type: ignore[arg-type]
    assert long > 3 * short


def test_a_thought_of_any_length_holds_back_no_more_than_its_end() -> None:
    for row in THOUGHTS:
        parser = Form("", None, row.thought).parser(TOOLS, in_thought=True)
        said = sum(len(it.text) for it in parser.feed("x" * 5000) if not isinstance(it, CallBegins))
        assert said == 5000


def test_no_marker_begins_like_another() -> None:
    for row in CALLS:
        for wraps in ((), ("<answer>", "</answer>")):
            for thought in THOUGHTS:
                stops = {*row.calls.begins, *wraps, thought.thought.begins}
                if row.calls.thinks:
                    stops = {*row.calls.begins, *wraps}
                for a in stops:
                    assert not any(b != a and b.startswith(a) for b in stops), (row.name, a)
