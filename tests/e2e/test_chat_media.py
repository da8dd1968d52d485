"""What the guest `chat` computes of a conversation with pictures: what is new, and no more."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image

from isthmus import Model, Runtime
from isthmus.actor import Actor
from isthmus.actor.content import with_files
from isthmus.errors import IsthmusError
from isthmus.model import Session
from tests.tiny_projector import TEXTS, TinyProjector

REWRITES = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] if m['role'] == 'user' else '(' ~ m['content'] ~ ')' }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Writes an answer in another way than it was said in: no prompt begins with what was said."""
TEMPLATES = {"goes on": "", "rewrites": REWRITES}
N_ROWS = 4
"""Rows of embeddings that a picture has."""
N_TEXT = 200
"""Bytes, which are tokens, of the first question."""
ARGS = ["n_ctx=1024", "max_tokens=4", "temperature=1"]
FIRST, SECOND, THIRD = "What is it?" + "?" * N_TEXT, "And now?", "And that one?"


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (61, 83, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


MESSAGES: tuple[str | bytes, ...] = (
    with_files(FIRST, picture(0)),
    SECOND,
    with_files(THIRD, picture(1), picture(2)),
    SECOND,
)
N_EMBEDDED = (1, 0, 2, 0)
"""Pictures of which each message makes embeddings."""


@pytest.fixture(scope="module")
def shared() -> Iterator[Runtime]:
    with Runtime(device="cpu", threads=2) as runtime:
        yield runtime


@pytest.fixture(scope="module", params=TEMPLATES)
def model(
    request: pytest.FixtureRequest, shared: Runtime, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    folder = tmp_path_factory.mktemp("chat")
    text = replace(TEXTS["gemma3"], chat_template=TEMPLATES[request.param])
    projector = TinyProjector("gemma3").write(folder / "mmproj.gguf")
    model = shared.load_model(text.write(folder / "text.gguf"), mmproj=projector)
    yield model
    shared.unload_model(model)


def nothing(_session: Session, _n_tokens: int) -> int:
    """How much of a session can be kept, which is then computed anew."""
    return 0


@dataclass
class Counted:
    """How many parts of media became embeddings."""

    n: int = 0


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counted, before = Counted(), Model.media_jobs

    def count(*args: object) -> object:
        counted.n += 1
        return before(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(Model, "media_jobs", count)
    return counted


def chat(shared: Runtime, model: Model) -> Actor:
    return shared.spawn("chat", models={"default": model}, args=ARGS, seed=0)


def told(actor: Actor, *messages: str | bytes) -> list[str]:
    return [actor.send(it).text for it in messages]


def test_only_what_is_new_is_computed(shared: Runtime, model: Model, embedded: Counted) -> None:
    actor, n_before = chat(shared, model), 0
    for number, (message, n_pictures) in enumerate(zip(MESSAGES, N_EMBEDDED, strict=True)):
        embedded.n, before = 0, actor.usage.tokens_in
        actor.send(message)
        n_in = actor.usage.tokens_in - before
        assert embedded.n == n_pictures
        if number == 0:
            assert n_in > N_TEXT + N_ROWS
        else:
            assert n_in < N_TEXT // 2  # the question, the answer before, and words of the template
        assert actor.sessions[0].n_tokens > n_before
        n_before = actor.sessions[0].n_tokens
    assert len(actor.sessions[0].spans) == 3
    actor.close()


@pytest.mark.parametrize("model", ["rewrites"], indirect=True)
def test_answers_are_those_of_a_session_that_computes_all(
    shared: Runtime, model: Model, embedded: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = chat(shared, model)
    found: list[str] = []
    for message in MESSAGES:
        (fresh,) = actor.fork()
        found.append(actor.send(message).text)
        held = actor.sessions[0]
        embedded.n = 0
        with monkeypatch.context() as patch:
            patch.setattr(type(fresh.sessions[0]) if fresh.sessions else Session, "reach", nothing)
            assert fresh.send(message).text == found[-1]
        assert embedded.n == len(held.spans)
        again = fresh.sessions[0]
        assert (again.tokens, again.spans) == (held.tokens, held.spans)
        assert np.abs(again.logits - held.logits).max() < 1e-2
        fresh.close()
    assert len({*found}) > 1
    actor.close()


def test_a_message_that_fails_leaves_what_was_held(
    shared: Runtime, model: Model, embedded: Counted
) -> None:
    actor, other = chat(shared, model), chat(shared, model)
    for message in MESSAGES[:2]:
        assert actor.send(message).text == other.send(message).text
    for bad in (with_files(THIRD, picture(3), b"nothing"), with_files("x" * 2000, picture(3))):
        with pytest.raises(IsthmusError):
            actor.send(bad)
    embedded.n = 0
    assert [actor.send(it).text for it in MESSAGES[2:]] == told(other, *MESSAGES[2:])
    assert embedded.n == 2 * 2
    actor.close()
    other.close()
