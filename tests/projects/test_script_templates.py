"""The scripts that `isthmus new --lang js` and `py` begin with do what those in C do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from isthmus.model import Model
from isthmus.projects import SCRIPT_LANGUAGES, new_script
from isthmus.runtime import Runtime

Scripted = Callable[..., Model]
pytestmark = pytest.mark.long  # needs the interpreters: `isthmus pull js`, `isthmus pull py`
each_language = pytest.mark.parametrize("lang", SCRIPT_LANGUAGES)


@each_language
def test_hello_talks(
    lang: str, isthmus_runtime: Runtime, scripted_model: Scripted, tmp_path: Path
) -> None:
    models = {"default": scripted_model("Yes.", "No.")}
    agent = isthmus_runtime.spawn(new_script(tmp_path / "hello", lang, "hello"), models=models)
    assert [agent.send(it).text for it in ("Is it?", "And now?")] == ["Yes.", "No."]


@each_language
def test_tool_asks_and_counts(
    lang: str, isthmus_runtime: Runtime, scripted_model: Scripted, tmp_path: Path
) -> None:
    asked: list[bytes] = []
    agent = isthmus_runtime.spawn(
        new_script(tmp_path / "notes", lang, "tool"),
        models={"default": scripted_model("A strip of land.")},
        tools={"lookup": lambda args: asked.append(args) or b"land"},  # type: ignore[func-returns-value]
    )
    assert agent.send("isthmus").text == "A strip of land."
    assert asked == [b"isthmus"]
    (fork,) = agent.fork()
    assert fork.send("count").text == "1 answers"


@pytest.mark.model
def test_a_real_model_says_the_same_in_both(
    runtime: Runtime, smollm2: Path, tmp_path: Path
) -> None:
    models = {"default": runtime.load_model(smollm2)}
    said = {}
    for lang in SCRIPT_LANGUAGES:
        script = new_script(tmp_path / f"hello-{lang}", lang, "hello")
        agent = runtime.spawn(script, models=models, args={"seed": 7, "temperature": 0})
        said[lang] = agent.send("Name an isthmus in one word.").text
    assert said["js"] == said["py"]
    assert said["js"]
