"""Which turns stay if a conversation does not fit into the context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from isthmus.errors import ContextFull
from isthmus.server.generation.turns import without_oldest

SYSTEM = {"role": "system", "content": "s"}


def turn(n: int) -> list[dict[str, Any]]:
    """A turn with a call of a tool."""
    return [
        {"role": "user", "content": f"question {n}"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": n}]},
        {"role": "tool", "content": f"result {n}", "tool_call_id": n},
        {"role": "assistant", "content": f"answer {n}"},
    ]


def conversation(n_turns: int) -> list[dict[str, Any]]:
    return [SYSTEM, *(it for n in range(n_turns) for it in turn(n)), turn(n_turns)[0]]


class Renderer:
    """Takes conversations of up to `most` messages."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.n_calls = 0

    def __call__(self, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        self.n_calls += 1
        if len(messages) > self.most:
            raise ContextFull("too long")
        return list(messages)


@pytest.mark.parametrize("n_turns", [0, 1, 2, 5, 100])
@pytest.mark.parametrize("n_fit", [0, 1, 2, 4])
def test_as_many_of_the_last_turns_as_fit(n_turns: int, n_fit: int) -> None:
    render = Renderer(2 + 4 * n_fit)
    whole = conversation(n_turns)
    n = min(n_turns, n_fit)
    assert without_oldest(whole, render) == [SYSTEM, *whole[len(whole) - 4 * n - 1 :]]
    assert render.n_calls <= 2 + max(n_turns, 1).bit_length()


def test_a_last_turn_that_does_not_fit() -> None:
    with pytest.raises(ContextFull):
        without_oldest(conversation(9), Renderer(1))
    with pytest.raises(ContextFull):
        without_oldest([SYSTEM], Renderer(0))


def test_an_answer_without_a_question_is_a_turn() -> None:
    whole = [{"role": "assistant", "content": "hello"}, *turn(1)]
    assert without_oldest(whole, Renderer(4)) == turn(1)
