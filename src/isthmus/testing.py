"""A pytest plug-in for tests of guests: a runtime, and models that say what they are told to.

::

    pytest_plugins = ["isthmus.testing"]  # in conftest.py


    def test_it_answers(isthmus_runtime, scripted_model):
        model = scripted_model("Yes.", "No.")
        agent = isthmus_runtime.spawn("agent.wasm", models={"default": model})
        assert agent.send("Is it?").text == "Yes."
        assert agent.send("And now?").text == "No."
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from isthmus.model import Model
    from isthmus.runtime import Runtime


@pytest.fixture
def isthmus_runtime() -> Iterator[Runtime]:
    """A runtime on the processor, which closes all agents and models when the test ends."""
    from isthmus.runtime import Runtime  # noqa: PLC0415 - other tests need not wait for it

    with Runtime(device="cpu", threads=1) as runtime:
        yield runtime


@pytest.fixture
def scripted_model(isthmus_runtime: Runtime) -> Callable[..., Model]:
    """What opens a model that gives these answers, one in each turn of a conversation."""
    from isthmus.model.scripted import PREFIX, SEPARATOR  # noqa: PLC0415 - as above

    def opened(*answers: str) -> Model:
        return isthmus_runtime.load_model(PREFIX + SEPARATOR.join(answers))

    return opened
