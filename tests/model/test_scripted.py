"""Models that say what they are told to: the answers of each turn, by every way to ask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from isthmus.config import Environment
from isthmus.errors import SettingsError
from isthmus.model import Model
from isthmus.model.files.gguf import GgufFile
from isthmus.model.scripted import MAX_ANSWERS, N_CTX, scripted_file, scripted_gguf, split_answers
from isthmus.native.loader import Library
from isthmus.runtime import Runtime

Scripted = Callable[..., Model]
ANSWERS = ("First one.", "And a second: ünïcode 🙂.", "And the third, and the third")


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 2, "seed": 1}, {"sampler": "host"}], ids=str
)
def test_each_turn_has_its_answer(
    isthmus_runtime: Runtime, scripted_model: Scripted, options: dict[str, object]
) -> None:
    agent = isthmus_runtime.spawn(
        "chat", models={"default": scripted_model(*ANSWERS)}, args=options
    )
    said = [agent.send(f"message {n}").text for n in range(5)]
    assert said == [*ANSWERS, ANSWERS[-1], ANSWERS[-1]]


def test_an_answer_that_begins_as_files_do_is_a_text(
    isthmus_runtime: Runtime, scripted_model: Scripted
) -> None:
    answers = ["\0 and", "\0\x05\0\0\0hello\0\0\0\0and more", "done"]
    agent = isthmus_runtime.spawn("chat", models={"default": scripted_model(*answers)})
    assert [agent.send("go on").text for _ in answers] == answers


def test_eight_answers_are_told_apart_after_a_long_prompt(
    isthmus_runtime: Runtime, scripted_model: Scripted
) -> None:
    answers = [f"answer number {n} of these" for n in range(MAX_ANSWERS)]
    args = {"n_ctx": N_CTX, "temperature": 1, "repeat_penalty": 1.5}
    agent = isthmus_runtime.spawn("chat", models={"default": scripted_model(*answers)}, args=args)
    assert [agent.send("x" * 700).text for _ in answers] == answers


def test_a_prompt_without_turns_has_the_first_answer(
    isthmus_runtime: Runtime, scripted_model: Scripted
) -> None:
    models = {"default": scripted_model(*ANSWERS), "draft": scripted_model(*ANSWERS)}
    agent = isthmus_runtime.spawn("bench", models=models)
    agent.send("tokens 0 70 71 72")
    assert agent.send("emit 40").text == ANSWERS[0]


def test_forks_and_snapshots_know_the_turn(
    isthmus_runtime: Runtime, scripted_model: Scripted, tmp_path: Path
) -> None:
    model = scripted_model(*ANSWERS)
    agent = isthmus_runtime.spawn("chat", models={"default": model})
    agent.send("one")
    (child,) = agent.fork()
    saved = agent.snapshot(tmp_path / "agent.safetensors")
    again = isthmus_runtime.restore(saved, models={"default": model})
    assert [it.send("two").text for it in (agent, child, again)] == [ANSWERS[1]] * 3


def test_a_schema_holds_what_is_said(isthmus_runtime: Runtime, scripted_model: Scripted) -> None:
    schema = '{"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}'
    agent = isthmus_runtime.spawn(
        "chat",
        models={"default": scripted_model('{"age": 12}')},
        args={"json_schema": schema, "temperature": 0},
    )
    assert agent.send("Invent a person").text == '{"age": 12}'


def test_pieces_are_unique_and_make_the_answers() -> None:
    answers = ["ha ha ha ha", "ha ha", "a b c a b c", "word " * 2000, "  two\n\nlines ", "hm"]
    pieces = split_answers(answers)
    assert ["".join(it) for it in pieces] == answers
    every = [piece for it in pieces for piece in it]
    assert len(set(every)) == len(every) < 600
    assert all(len(piece) > 1 for piece in every)


@pytest.mark.parametrize(
    ("answers", "complaint"),
    [
        ([], "1 to 8 answers"),
        ([""], "none of them empty"),
        (["a"] * 9, "1 to 8 answers"),
        (["x"], "more than one character"),
        (["same", "same"], "have to differ"),
    ],
)
def test_answers_that_cannot_be_are_refused(answers: list[str], complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        scripted_gguf(answers)


def test_the_same_name_is_the_same_file(library: Library, tmp_path: Path) -> None:
    path = scripted_file("fake:yes, yes||no, no", tmp_path)
    assert GgufFile(library, path).metadata["general.name"] == "fake"
    path.write_bytes(path.read_bytes()[:100])
    assert scripted_file("fake:yes, yes||no, no", tmp_path) == path
    assert GgufFile(library, path).metadata["general.name"] == "fake"
    assert scripted_file("fake:other words", tmp_path) != path


def test_it_lies_in_the_cache(isthmus_runtime: Runtime, scripted_model: Scripted) -> None:
    model = scripted_model("a word")
    assert model.path.parent == Environment.read().cache / "scripted"
