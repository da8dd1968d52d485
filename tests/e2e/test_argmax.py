"""A guest's greedy choice: the first of the greatest logits, wherever they lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from isthmus import Actor
from isthmus.abi import Errno
from isthmus.runtime import Runtime
from tests.tiny_gguf import TinyLlama

SIZES = (79, 96, 320)
"""Tokens: two halves of 32 and 15 more, two halves of 48, and ten times as many."""


def choosing(runtime: Runtime, folder: Path, n_vocab: int) -> Actor:
    """An agent that holds a token, on a device that leaves its logits alone."""
    path = TinyLlama(n_layer=1, n_vocab=n_vocab).write(folder / "it.gguf")
    actor = runtime.spawn("bench", models={"default": runtime.load_model(path)}, args={"n_ctx": 64})
    actor.send("tokens 1")
    return actor


def chosen(actor: Actor, logits: npt.NDArray[np.float32]) -> int:
    """What the agent takes of these logits."""
    with actor.region.view(actor.sessions[0].logits_ptr, logits.nbytes) as view:
        np.frombuffer(view.memory, np.float32)[:] = logits
    return int(actor.send("next 1").text.removeprefix("token="))


@pytest.mark.parametrize("n_vocab", SIZES)
def test_the_greatest_logit_wins_at_every_place(
    null_runtime: Runtime, tmp_path: Path, n_vocab: int
) -> None:
    actor = choosing(null_runtime, tmp_path, n_vocab)
    logits = np.random.default_rng(n_vocab).standard_normal(n_vocab).astype(np.float32)
    assert chosen(actor, logits) == int(np.argmax(logits))
    for place in {*range(0, n_vocab, 7), n_vocab // 2 - 1, n_vocab // 2, n_vocab - 1}:
        one = np.sort(logits)
        one[place] = 9.0
        assert chosen(actor, one) == place


@pytest.mark.parametrize("n_vocab", SIZES)
def test_of_equals_the_first_wins_and_no_number_never_does(
    null_runtime: Runtime, tmp_path: Path, n_vocab: int
) -> None:
    actor = choosing(null_runtime, tmp_path, n_vocab)
    for first, second in ((3, n_vocab - 2), (5, 6), (n_vocab // 2, n_vocab - 1)):
        logits = np.full(n_vocab, -np.inf, np.float32)
        logits[[first, second]] = 1.5
        assert chosen(actor, logits) == first
        logits[first] = np.nan
        assert chosen(actor, logits) == second
    for nothing in (np.nan, -np.inf):
        assert chosen(actor, np.full(n_vocab, nothing, np.float32)) == -Errno.EINVAL
