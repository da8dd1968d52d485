"""The guest `complete` keeps pictures that two prompts have in common, and no bit tells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest

from isthmus import Model, Runtime
from isthmus.actor import Actor
from isthmus.errors import IsthmusError
from isthmus.model.chat.media_marks import id_of
from isthmus.server.generation.request import files_as_bytes, ids_as_bytes
from isthmus.server.generation.words import Words
from tests.e2e.test_chat_media import Counted, embedded, picture
from tests.tiny_projector import TEXTS, TinyProjector

__all__ = ["embedded"]
N_CTX = 1024
N_WORDS = 20
"""Tokens between two files."""
PICTURES = tuple(map(picture, range(4)))
Graph = Literal["own", "adopted"]
Prompt = tuple[int | bytes, ...]
"""Tokens, and files among them."""


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with Runtime(device="cpu", threads=2) as runtime:
        yield runtime


@pytest.fixture(scope="module", params=["gemma3", "qwen3vl"])
def model(
    request: pytest.FixtureRequest, runtime: Runtime, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    folder, kind = tmp_path_factory.mktemp("complete"), request.param
    projector = TinyProjector(kind).write(folder / "mmproj.gguf")
    text = TEXTS[kind].write(folder / "text.gguf")
    graph: Graph = "adopted" if kind == "qwen3vl" else "own"
    model = runtime.load_model(text, mmproj=projector, graph=graph)
    yield model
    runtime.unload_model(model)


def spawn(runtime: Runtime, model: Model, fine: int = 512) -> Actor:
    args = {"n_ctx": N_CTX, "fine": fine if model.exact_cuts else 0}
    return runtime.spawn("complete", models={"default": model}, args=args)


def told(actor: Actor, prompt: Prompt, **words: int) -> tuple[list[str], list[int]]:
    """The lines of an answer; tokens of the prompt that were kept, and all of them."""
    files = [it for it in prompt if isinstance(it, bytes)]
    numbers = iter(range(len(files)))
    ids = [it if isinstance(it, int) else id_of(next(numbers)) for it in prompt]
    data = files_as_bytes(files)
    given = {"max_tokens": 4, "seed": 1, "logprobs": 0, "ignore_eos": 1, **words}
    line = Words(media_nbytes=len(data), **given).line()  # type: ignore[arg-type]
    began, *lines = str(actor.send(line + ids_as_bytes(ids) + data).text).splitlines()
    return lines, [int(it) for it in began.split()[1:]]


def words(n: int, seed: int = 0) -> Prompt:
    return tuple(map(int, np.random.default_rng(seed).integers(10, 200, n)))


A, B, C, D = PICTURES
TURN, LONG = words(N_WORDS), words(300, 1)
CONVERSATION: tuple[Prompt, ...] = (
    (*TURN, A, *TURN),
    (*TURN, A, *TURN, *TURN, B, *TURN),
    (*TURN, A, *TURN, *TURN, B, *TURN, C),
    (*TURN, A, *TURN, *TURN, B, *TURN, C, *LONG),
    (*TURN, A, *TURN, *TURN, B, *TURN, C, *LONG, *TURN),
)
N_EMBEDDED = (1, 1, 1, 0, 0)
"""Pictures of which each turn makes embeddings."""


def test_only_new_pictures_are_computed(runtime: Runtime, model: Model, embedded: Counted) -> None:
    with spawn(runtime, model) as actor:
        n_kept = 0
        for prompt, n_pictures in zip(CONVERSATION, N_EMBEDDED, strict=True):
            embedded.n = 0
            _, (kept, n_prompt) = told(actor, prompt)
            assert embedded.n == n_pictures
            assert n_kept <= kept < n_prompt
            n_kept = kept
        assert kept > 256  # two blocks after the last picture
        embedded.n = 0
        told(actor, (*TURN, D, *TURN))
        told(actor, CONVERSATION[0])
        assert embedded.n == 2


OTHERS: tuple[Prompt, ...] = (
    *CONVERSATION,
    (A, *TURN),
    (*TURN, B),
    (*TURN, A, A, *TURN),
    (*TURN, A, B, *TURN),
    (*LONG, A, *TURN),
    (*LONG, *LONG),
    (*LONG, *TURN, B),
    TURN,
)


@pytest.mark.parametrize("fine", [0, 512])
def test_no_bit_of_an_answer_tells(runtime: Runtime, model: Model, fine: int) -> None:
    fresh = []
    for prompt in OTHERS:
        with spawn(runtime, model, fine) as actor:
            fresh.append(told(actor, prompt)[0])
    with spawn(runtime, model, fine) as actor:
        for number in np.random.default_rng(fine).integers(0, len(OTHERS), 30):
            assert told(actor, OTHERS[number])[0] == fresh[number], number


def test_a_prompt_is_counted_and_not_computed(
    runtime: Runtime, model: Model, embedded: Counted
) -> None:
    prompt = CONVERSATION[-1]
    with spawn(runtime, model) as actor, spawn(runtime, model) as other:
        lines, (_, n_prompt) = told(actor, prompt)
        for counting in (actor, other):
            embedded.n = 0
            before = counting.usage.tokens_in
            assert told(counting, prompt, count_prompt=1) == (["end length"], [0, n_prompt])
            assert (embedded.n, counting.usage.tokens_in) == (0, before)
        told(actor, (*TURN, D), count_prompt=1)
        assert told(actor, prompt)[0] == lines
        assert embedded.n == 0  # what was counted has displaced nothing


def test_a_file_that_is_none_loses_nothing(
    runtime: Runtime, model: Model, embedded: Counted
) -> None:
    with spawn(runtime, model) as actor:
        lines, _ = told(actor, CONVERSATION[2])
        for wrong in (b"nothing", A[:60], b""):
            for how in ({}, {"count_prompt": 1}):
                with pytest.raises(IsthmusError):
                    told(actor, (*CONVERSATION[1], wrong, *TURN), **how)
        embedded.n = 0
        assert told(actor, CONVERSATION[2])[0] == lines
        assert embedded.n == 1  # the last, which the wrong files stood in the place of
