"""The plays of the scripted model: what the scripts of the clients ask, and what it says to that."""

from __future__ import annotations

from pathlib import Path

from tests.clients.scripted import Play, Step, call

ANSWER = "Paris is sunny, and Rome is rainy."


def weather() -> Play:
    """Two calls of `weather`, then the answer, which is a call where calls are forced."""
    return Play(
        "How is the weather in Paris and in Rome?",
        (
            Step(call("weather", {"city": "Paris"}), "sunny"),
            Step(call("weather", {"city": "Rome"}), "rainy"),
            Step((ANSWER, *call("final_answer", {"answer": ANSWER}))),
        ),
    )


def endless() -> Play:
    """An answer that ends when its caller leaves."""
    return Play("Count forever.", (Step(("and one more, ",), repeats=True),))


def plays() -> tuple[Play, ...]:
    """All plays."""
    return (weather(), endless())
