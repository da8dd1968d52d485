"""Features of a client, run one at a time: `python CLIENT.py URL ROUTE FEATURE` prints `good`.

Scripts run in the environment of their client, so nothing here needs a package.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

URL = sys.argv[1]
"""The server, without a path."""
ROUTE = sys.argv[2]
"""The API that the client is to use: `chat`, `responses`, `messages`, `ollama` or `llamacpp`."""
MODEL, SCRIPTED = "smollm2", "scripted"
"""A small model that talks, and one that calls `weather` for Paris, then for Rome."""
EMBED, GAPS = "embed", "gaps"
"""Tiny models with random weights: one makes embeddings, one fills gaps in texts."""
QUESTION = "What is an isthmus?"
TASK = "How is the weather in Paris and in Rome?"
CODE_TASK = "Write code that tells the weather of Paris and of Rome."
"""A task for an agent that writes Python."""
REACT_TASK = "Find out the weather of Paris, then that of Rome."
"""A task for an agent that writes thoughts, tools and arguments as text."""
TEXT_TASK = "Change world to isthmus in hello.txt: write the file."
"""A task for a client that finds files in the model's text."""
WEATHER = {"Paris": "sunny", "Rome": "rainy"}
ANSWER = "Paris is sunny, and Rome is rainy."
"""What the scripted model says after both results, if it was told both."""
ENDLESS = "Count forever."
"""What the scripted model does until its caller leaves."""
MAX_TOKENS = 100_000
"""Tokens of an answer that a caller leaves: far more than come before that."""


def run(*features: Callable[[], None]) -> None:
    """Runs the feature that the command line names: the function `ROUTE_FEATURE` or `FEATURE`."""
    named = {it.__name__: it for it in features}
    name = sys.argv[3]
    named.get(f"{ROUTE}_{name}", named.get(name, _missing))()
    print("good")


def _missing() -> None:
    raise LookupError(f"this client has no feature {sys.argv[3]} for {ROUTE}")
