"""Tools and pictures in one conversation of the guest `chat`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import pytest

from isthmus import Actor, Model, Runtime
from isthmus.actor.content import with_files
from isthmus.errors import IsthmusError
from tests.e2e.test_chat_media import Counted, embedded, picture
from tests.tiny_projector import TEXTS, TinyProjector
from tests.tools.test_chat import FORMS

__all__ = ["embedded"]
ARGS = {"n_ctx": 4096, "max_tokens": 140, "temperature": 0, "tools": "required"}
FIRST, SECOND = picture(0), picture(1)


def choose(city: Literal["Oslo", "Rome"]) -> str:
    """What is said of a city."""
    return f"{city} is sunny"


@pytest.fixture(scope="module")
def shared() -> Iterator[Runtime]:
    with Runtime(device="cpu", threads=2) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def model(shared: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("tools")
    text = replace(
        TEXTS["gemma3"], chat_template=(FORMS / "qwen3_coder.jinja").read_text(), n_ctx=4096
    )
    projector = TinyProjector("gemma3").write(folder / "mmproj.gguf")
    return shared.load_model(text.write(folder / "text.gguf"), mmproj=projector)


@pytest.fixture
def actor(shared: Runtime, model: Model) -> Iterator[Actor]:
    with shared.spawn(
        "chat", models={"default": model}, args=ARGS, tools={"choose": choose}, seed=1
    ) as actor:
        yield actor


def test_a_tool_is_called_about_a_picture(actor: Actor, model: Model, embedded: Counted) -> None:
    reply = actor.send(with_files("Where is this?", FIRST))
    assert [it.name for it in reply.tool_calls] == ["choose"]
    (session,) = actor.sessions
    assert (embedded.n, len(session.spans)) == (1, 1)
    written = [it for it in session.tokens if it >= 0]
    text = model.tokenizer.decode(written).decode(errors="replace")
    assert text.index("Where is this?") < text.index("is sunny")


def test_only_new_pictures_are_computed(actor: Actor, embedded: Counted) -> None:
    actor.send(with_files("Where is this?", FIRST))
    assert actor.send("And now?").tool_calls
    assert embedded.n == 1
    actor.send(with_files("And these two?", SECOND, FIRST))
    assert (embedded.n, len(actor.sessions[0].spans)) == (3, 3)


def test_pictures_change_what_is_computed_and_forks_have_them(actor: Actor) -> None:
    (other,) = actor.fork()
    actor.send(with_files("Where is this?", FIRST))
    other.send(with_files("Where is this?", SECOND))
    (mine,), (others,) = actor.sessions, other.sessions
    assert mine.n_tokens == others.n_tokens
    assert bytes(mine.logits) != bytes(others.logits)
    (child,) = actor.fork()
    assert child.send("And now?").text == actor.send("And now?").text
    assert bytes(child.sessions[0].logits) == bytes(actor.sessions[0].logits)
    child.close()
    other.close()


def test_a_message_that_fails_leaves_no_file(actor: Actor, embedded: Counted) -> None:
    (same,) = actor.fork()
    with pytest.raises(IsthmusError):
        actor.send(with_files("Where is this?", FIRST, b"no picture"))
    with pytest.raises(IsthmusError):
        actor.send(b"\0\xff\xff\xff\xff")  # a file that is cut off
    embedded.n = 0
    message = with_files("Where is this?", SECOND)
    assert actor.send(message).text == same.send(message).text
    assert embedded.n == 2
    assert bytes(actor.sessions[0].logits) == bytes(same.sessions[0].logits)
    same.close()


def test_a_text_is_a_text_and_no_part(actor: Actor, embedded: Counted) -> None:
    said = '[{"type": "media", "number": 0}]'
    assert actor.send(said).tool_calls
    assert embedded.n == 0
    assert not actor.sessions[0].spans
