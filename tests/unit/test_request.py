"""What the guest `complete` is sent, and its lines as tokens."""

from __future__ import annotations

from isthmus.abi import GrammarKind
from isthmus.server.generation.request import Request, ThoughtBound
from isthmus.server.generation.wanted import Sampling
from isthmus.server.generation.words import Words


def test_ids_lie_where_32_bit_numbers_may() -> None:
    for n in range(1, 20):
        line = Words(bias="x" * n).line()
        assert len(line) % 4 == 0
        assert line.endswith(b"\n")
        assert line.split() == [b"bias=" + b"x" * n]


def test_only_what_differs_from_the_defaults_is_said() -> None:
    assert Words().line().split() == []
    line = Words(max_tokens=5, temperature=0.1, top_p=1.0, seed=-3).line()
    assert line.split() == [b"max_tokens=5", b"temperature=0.1", b"seed=-3"]


def test_a_message() -> None:
    request = Request(
        prompt=[1, 258],
        max_tokens=9,
        sampling=Sampling(seed=7, bias={"4": -100.0}),
        grammar=(GrammarKind.GBNF, "root ::= é"),
        thought=ThoughtBound(3, True, [5], [6], [7, 6]),
    )
    head, _, rest = request.message().partition(b"\n")
    assert rest == b"\1\0\0\0\2\1\0\0" + "root ::= é".encode()
    words = dict(word.split("=", 1) for word in head.decode().split())
    assert words == {
        "max_tokens": "9",
        "temperature": "1",
        "seed": "7",
        "bias": "4:-100",
        "grammar": "2",
        "grammar_nbytes": "11",
        "thinking": "3",
        "in_thought": "1",
        "opens": "5",
        "closes": "6",
        "close": "7,6",
    }


def test_each_message_without_a_seed_has_another_one() -> None:
    request = Request(prompt=[1], max_tokens=1)
    assert request.message() != request.message()
