"""Stop texts: tokens are held back while they may belong to one, and the answer ends before it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from isthmus.server.generation.stops import Seeker, Stops
from isthmus.server.generation.tokens import Token


@pytest.mark.parametrize("text", ["one END two", "one EN", "oneENEND", "", "STOP", "xSTOPEND"])
def test_stops_cut_the_text_at_the_first_of_them(text: str) -> None:
    places = [(at, it) for it in ("END", "STOP") if (at := text.find(it)) >= 0]
    at, which = min(places, default=(len(text), None))
    for n in range(len(text) + 1):
        stops = Stops(("END", "STOP"))
        told: list[Token] = []
        for piece in (text[:n], text[n:]):
            told += [] if stops.found else stops.push(Token(1, piece))
        told += [] if stops.found else stops.finish("")
        assert ("".join(it.text for it in told), stops.found) == (text[:at], which)


@pytest.mark.parametrize(
    ("pieces", "stop", "told", "n_tokens"),
    [
        (["ab", "cd", "ef"], "cd", "ab", 1),
        (["ab", "cd", "ef"], "bcde", "a", 1),
        (["a", "", "é", "b"], "é", "a", 1),  # a character of two tokens
        (["x", "\n", "\n", "y"], "\n\n", "x", 1),
        (["x", "\n", "y", "\n"], "\n\n", "x\ny\n", 4),
        (["abc"], "abc", "", 0),
        (["aa", "ab"], "aab", "a", 1),
    ],
)
def test_tokens_are_held_back_while_they_may_stop(
    pieces: list[str], stop: str, told: str, n_tokens: int
) -> None:
    stops = Stops((stop,))
    found: list[Token] = []
    for piece in pieces:
        found += stops.push(Token(1, piece))
        text = "".join(it.text for it in found)
        assert told.startswith(text)
        if stops.found:
            break
    else:
        found += stops.finish("")
    assert ("".join(it.text for it in found), len(found)) == (told, n_tokens)
    assert [it.start for it in found] == [len("".join(pieces[:n])) for n in range(n_tokens)]


def test_stops_are_found_as_a_search_in_the_whole_text_finds_them() -> None:
    rng = random.Random(7)
    for _ in range(2000):
        stops = tuple("".join(rng.choices("ab", k=rng.randint(1, 6))) for _ in range(2))
        pieces = ["".join(rng.choices("ab", k=rng.randint(0, 3))) for _ in range(8)]
        told, found = told_of(pieces, stops)
        for n in range(len(pieces) + 1):  # a stop text ends the answer with the token that has it
            text = "".join(pieces[:n])
            places = [(at, it) for it in stops if (at := text.find(it)) >= 0]
            if places:
                assert (told, found) == (text[: min(places)[0]], min(places)[1])
                break
        else:
            assert (told, found) == (text, None)


def told_of(pieces: list[str], stops: tuple[str, ...]) -> tuple[str, str | None]:
    seeking, told = Stops(stops), ""
    for piece in pieces:
        told += "".join(it.text for it in seeking.push(Token(1, piece)))
        if seeking.found:
            return told, seeking.found
    return told + "".join(it.text for it in seeking.finish("")), None


class Counted(str):
    """A text that counts how often a character of it is looked at."""

    n = 0

    def __getitem__(self, at: Any) -> str:
        self.n += 1
        return super().__getitem__(at)


@pytest.mark.parametrize("text", ["a" * 5000, ("a" * 99 + "c") * 50, "ab" * 2500, "xyz" * 1700])
def test_a_long_stop_text_takes_time_that_grows_with_the_answer(text: str) -> None:
    """Not with the stop text, of which only what is matched is looked at."""
    for stop in (Counted("a" * 1_000_000 + "b"), Counted("ab" * 500_000)):
        seeker = Seeker(stop)
        for at in range(0, len(text), 3):
            assert seeker.push(text[at : at + 3]) is None
        assert stop.n <= 5 * len(text)


def test_tokens_without_a_text_are_told_with_the_next_that_has_one() -> None:
    stops = Stops(("ab",))
    assert stops.push(Token(1, "")) == []
    assert stops.push(Token(2, "a")) == []
    assert stops.push(Token(3, "")) == []
    assert [it.id for it in stops.push(Token(4, "c"))] == [1, 2, 3, 4]
