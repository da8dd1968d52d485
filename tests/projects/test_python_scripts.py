"""Agents in Python: they talk, fork and are saved as others are, and fail in one clear line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from isthmus.cli import main
from isthmus.config import Limits
from isthmus.errors import DeadlineExceeded, GuestFailed
from isthmus.model import Model
from isthmus.runtime import Runtime
from tests.projects.script_life import live
from tests.tiny_gguf import TinyLlama

AGENT = """\
import isthmus

model = isthmus.open_model()
session = model.open_session()
turns = []

def on_message(text):
    if text == "count":
        return "%d answers" % (len(turns) // 2)
    facts = isthmus.tool("lookup", text)
    question = text if facts is None else "Facts: " + facts + "\\n" + text
    turns.append({"role": "user", "content": question})
    session.become(model.chat_tokens(turns))
    turns.append({"role": "assistant", "content": session.generate()})
"""
GREEDY = """\
import isthmus

def on_message(text):
    model = isthmus.open_model()
    with_prompt = model.chat_tokens([{"role": "user", "content": text}])
    session, twin = model.open_session(512), model.open_session(512)
    session.become(with_prompt)
    twin.copy_from(session)
    answer = ""
    for _ in range(12):
        logits = session.logits()
        best = max(range(len(logits)), key=lambda at: logits[at])
        if model.is_end(best):
            break
        answer += model.detokenize([best])
        session.decode(best)
    twin.close()
    session.close()
    return answer
"""
GARBAGE = """\
kept = {}

def fill():
    for i in range(60000):
        kept[i % 97] = (i, "x" * 20, [i] * 3)

def items():
    for i in range(20000):
        yield "item %d" % i

def on_message(text):
    fill()
    assert all(it[0] % 97 == at and it[2] == [it[0]] * 3 for at, it in kept.items())
    return "%d %d" % (len(kept), sum(len(it) for it in items()))
"""
CATCHES = """\
import json, math, random, re

class Told:
    def __enter__(self):
        return "in"
    def __exit__(self, *what):
        return True

def deep(n):
    return deep(n + 1)

def on_message(text):
    said = []
    for what in (lambda: 1 / 0, lambda: deep(0), lambda: {}["none"], lambda: json.loads("none")):
        try:
            what()
        except Exception as error:
            said.append(type(error).__name__)
        finally:
            said.append("f")
    with Told() as word:
        said.append(word)
        raise ValueError
    said.append(re.match("(a+)b", "aab").group(1))
    said.append(str(2**100 % 1000 + int(math.sqrt(16))))
    said.append(json.dumps({"a": [1, 2.5]}))
    said.append(str(0 <= random.random() < 1))
    return f"{text!r} {' '.join(said)}"
"""
Scripted = Callable[..., Model]
pytestmark = pytest.mark.long  # needs the interpreter: `isthmus pull py`


def script(folder: Path, text: str) -> Path:
    path = folder / "agent.py"
    path.write_text(text)
    return path


def test_a_script_talks_has_tools_forks_and_is_saved(
    isthmus_runtime: Runtime, scripted_model: Scripted, tmp_path: Path
) -> None:
    model = scripted_model("First öne.", "And a second.")
    live(isthmus_runtime, model, script(tmp_path, AGENT), tmp_path)


def test_another_model_goes_on_with_the_conversation(
    isthmus_runtime: Runtime, scripted_model: Scripted, tmp_path: Path
) -> None:
    """And a script hears of it, if it wants to."""
    source = (
        AGENT + "\ndef on_replay():\n    turns.append({'role': 'user', 'content': 'another'})\n"
    )
    models = {"default": scripted_model("First one.", "And a second.")}
    args = {"temperature": 0, "n_ctx": 512}
    agent = isthmus_runtime.spawn(script(tmp_path, source), models=models, args=args)
    assert agent.send("hello").text == "First one."
    saved = agent.snapshot(tmp_path / "agent.safetensors")
    file = TinyLlama(with_tokenizer=True).write(tmp_path / "other.gguf")
    models = {"default": isthmus_runtime.load_model(file)}
    again = isthmus_runtime.restore(saved, models=models, require="replayed")
    assert again.sessions[0].n_tokens == 0
    again.send("And now?")
    text = models["default"].tokenizer.decode(again.sessions[0].tokens).decode(errors="replace")
    assert all(said in text for said in ("hello", "First one.", "another", "And now?"))


def test_logits_are_read_in_place(
    isthmus_runtime: Runtime, scripted_model: Scripted, tmp_path: Path
) -> None:
    models = {"default": scripted_model("a scripted answer")}
    agent = isthmus_runtime.spawn(script(tmp_path, GREEDY), models=models)
    assert [agent.send("hi").text for _ in range(3)] == ["a scripted answer"] * 3


def test_exceptions_are_caught(isthmus_runtime: Runtime, tmp_path: Path) -> None:
    """And the language is there: with, finally, f-strings, large integers, modules."""
    agent = isthmus_runtime.spawn(script(tmp_path, CATCHES))
    caught = "ZeroDivisionError f RuntimeError f KeyError f ValueError f in aa 380"
    for text in ("hi", "again"):
        assert agent.send(text).text == f'{text!r} {caught} {{"a": [1, 2.5]}} True'


def test_what_is_not_needed_is_collected(isthmus_runtime: Runtime, tmp_path: Path) -> None:
    """60,000 rounds of garbage, many times what the memory holds, and nothing else is lost."""
    agent = isthmus_runtime.spawn(script(tmp_path, GARBAGE), limits=Limits(memory_nbytes=8 << 20))
    for _ in range(2):
        assert agent.send("go").text == "97 188890"


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("def on_message( {", r"SyntaxError: invalid syntax, at agent\.py:1"),
        ("x = 1", r"TypeError: the script defines no function on_message"),
        ("\ndef on_message(text):\n    return missing", r"NameError: .*'missing'.*agent\.py:3"),
        ("import isthmus\ndef on_message(_):\n  isthmus.open_model('no')", r"open_model: ENOENT"),
        ("raise ValueError('at the start')", r"ValueError: at the start, at agent\.py:1"),
        ("import socket", r"ImportError: no module named 'socket', at agent\.py:1"),
        ("def on_message(_):\n  open('x')", r"OSError: an agent has no files, at agent\.py:2"),
        ("def on_message(_):\n  raise ValueError", r"ValueError, at agent\.py:2"),
    ],
)
def test_errors_of_a_script_are_one_line(
    source: str, complaint: str, isthmus_runtime: Runtime, tmp_path: Path
) -> None:
    agent = isthmus_runtime.spawn(script(tmp_path, source))
    for _ in range(2):
        with pytest.raises(GuestFailed, match=complaint) as caught:
            agent.send("hi")
        assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("def on_message(_):\n  all = []\n  while True: all.append('x' * 100000)", "MemoryError"),
        ("def on_message(_):\n  all = []\n  while True: all.append([1.5])", "MemoryError"),
        ("def on_message(_):\n  return on_message(_)", "RuntimeError: maximum recursion"),
        ("def f():\n  yield from f()\ndef on_message(_):\n  list(f())", "maximum recursion"),
        ("def f(x):\n  sorted([1, 2], key=f)\non_message = f", "maximum recursion"),
        ("def on_message(_):\n  a = []\n  a.append(a)\n  repr(a)", "maximum recursion"),
        ("import json\ndef on_message(_):\n  a = []\n  a.append(a)\n  json.dumps(a)", "recursion"),
        ("import re\ndef on_message(_):\n  re.match('(a*)*b', 'a' * 200)", "maximum recursion"),
    ],
)
def test_bombs_and_depths_are_errors_after_which_the_agent_goes_on(
    source: str, error: str, isthmus_runtime: Runtime, tmp_path: Path
) -> None:
    agent = isthmus_runtime.spawn(script(tmp_path, source), limits=Limits(memory_nbytes=16 << 20))
    for _ in range(2):
        with pytest.raises(GuestFailed, match=error):
            agent.send("hi")


def test_a_loop_is_cut_off(isthmus_runtime: Runtime, tmp_path: Path) -> None:
    loop = script(tmp_path, "def on_message(text):\n    while True: pass\n")
    with pytest.raises(DeadlineExceeded):
        isthmus_runtime.spawn(loop, limits=Limits(deadline_s=2)).send("hi")


def test_what_is_printed_is_in_the_log(
    isthmus_runtime: Runtime, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = "def on_message(text):\n    print('seen', text)\n    print(1, 2, sep='\\n')\n"
    with caplog.at_level("INFO"):
        isthmus_runtime.spawn(script(tmp_path, source)).send("hi")
    said = [it.getMessage() for it in caplog.records]
    assert [it for it in ("seen hi", "1", "2") if any(line.endswith(it) for line in said)] == [
        "seen hi",
        "1",
        "2",
    ]


def test_the_command_line_runs_a_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = script(tmp_path, "def on_message(text):\n    return f'You said {text}.'\n")
    assert main(["run", str(path), "--message", "hi"]) == 0
    assert capsys.readouterr().out.strip() == "You said hi."
