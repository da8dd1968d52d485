"""What newcomers do on their first day, as they do it."""

from __future__ import annotations

import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

import isthmus
from isthmus.config import Limits
from isthmus.errors import ModelNotFound
from tests.e2e.test_cli import isthmus as run


@pytest.fixture(scope="module")
def runtime() -> Iterator[isthmus.Runtime]:
    with isthmus.Runtime(device="cpu", threads=1) as runtime:
        yield runtime


def test_a_guest_without_any_model_at_hand() -> None:
    done = run("run", "chat", "--model", "fake:Hello Ada.", "--message", "Hi", "--device", "cpu")
    assert (done.returncode, done.stdout) == (0, "Hello Ada."), done.stderr


def test_a_reply_prints_as_its_text(
    runtime: isthmus.Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    model = runtime.load_model("fake:Zürich **is** a city.")
    with runtime.spawn("chat", models={"default": model}) as actor:
        reply = actor.send("Where?")
    print(reply)
    assert capsys.readouterr().out == "Zürich **is** a city.\n"
    assert reply._repr_markdown_() == "Zürich **is** a city."


def test_an_answer_that_meets_the_end_of_its_context_is_kept(
    runtime: isthmus.Runtime, tiny: Path
) -> None:
    model = runtime.load_model(tiny)
    options = {"n_ctx": 128, "max_tokens": 5000, "regex": "[a-z ]{4000}"}
    with runtime.spawn("chat", models={"default": model}, seed=1, **options) as actor:
        reply = actor.send("Say it.")
    assert reply.limits_reached == ("n_ctx",)
    assert len(reply.text) > 20


def test_a_model_that_is_not_there_is_told_with_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path))
    with isthmus.Runtime(device="null") as runtime:
        for name in ("smollm2", "hf:org/repo", "llama3.2:1b"):
            with pytest.raises(ModelNotFound, match=f"isthmus pull {name}"):
                runtime.load_model(name)
        with pytest.raises(ModelNotFound, match="did you mean smollm2"):
            runtime.load_model("smollm3")


def test_serve_without_its_extra_says_how_to_get_it() -> None:
    program = "import sys; sys.modules['starlette'] = None; from isthmus.cli import main; "
    command = [sys.executable, "-c", f"{program}sys.exit(main(['serve']))"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("isthmus: for serve run: pip install 'isthmus[serve]' (")
    assert done.stderr.count("\n") == 1


def test_what_type_checkers_see() -> None:
    """Names that are imported as themselves, and values that are Literals."""
    source = Path(isthmus.__file__).read_text()
    for name in ("config", "errors"):
        assert f"from isthmus import {name} as {name}\n" in source
    kinds = typing.get_type_hints(Limits)["on_failure"]
    assert typing.get_args(kinds) == ("keep", "undo", "close")
