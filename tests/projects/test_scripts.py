"""Agents in JavaScript: they talk, fork and are saved as others are, and fail in one clear line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from isthmus.cli import main
from isthmus.config import Limits
from isthmus.errors import DeadlineExceeded, GuestError, GuestFailed, GuestInvalid
from isthmus.model import Model
from isthmus.runtime import Runtime
from tests.projects.script_life import live
from tests.tiny_gguf import TinyLlama

AGENT = """\
const model = isthmus.openModel();
const session = model.openSession();
const turns = [];

function onMessage(text) {
  if (text === "count") return `${turns.length / 2} answers`;
  const facts = isthmus.tool("lookup", text);
  turns.push({ role: "user", content: facts === undefined ? text : `Facts: ${facts}\\n${text}` });
  session.become(model.chatTokens(turns));
  turns.push({ role: "assistant", content: session.generate() });
}
"""
GREEDY = """\
function onMessage(text) {
  const model = isthmus.openModel();
  const session = model.openSession(512), twin = model.openSession(512);
  session.become(model.chatTokens([{ role: "user", content: text }]));
  twin.copyFrom(session);
  let answer = "";
  for (let i = 0; i < 12; i++) {
    const logits = session.logits();
    let best = 0;
    logits.forEach((value, at) => { if (value > logits[best]) best = at; });
    if (model.isEnd(best)) break;
    answer += model.detokenize([best]);
    session.decode(best);
  }
  twin.close();
  session.close();
  return answer;
}
"""
Scripted = Callable[..., Model]
pytestmark = pytest.mark.long  # needs the interpreter: `isthmus pull js`


def script(folder: Path, text: str) -> Path:
    path = folder / "agent.js"
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
    source = AGENT + "function onReplay() { turns.push({ role: 'user', content: 'another' }); }"
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


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("function onMessage( {", r"SyntaxError: .*agent\.js:1"),
        ("const x = 1;", r"TypeError: the script defines no function onMessage"),
        ("\nfunction onMessage() {\n  return missing;\n}", r"ReferenceError: missing.*agent\.js:3"),
        ("function onMessage() { isthmus.openModel('none'); }", r"openModel: ENOENT"),
        ("throw new Error('at the start')", "Error: at the start"),
        ("function onMessage() { Promise.reject(1); throw undefined; }", "undefined"),
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


def test_loops_and_bombs_are_cut_off(isthmus_runtime: Runtime, tmp_path: Path) -> None:
    loop = script(tmp_path, "function onMessage() { for (;;); }")
    with pytest.raises(DeadlineExceeded):
        isthmus_runtime.spawn(loop, limits=Limits(deadline_s=2)).send("hi")
    bomb = script(
        tmp_path,
        "function onMessage() { const all = []; for (;;) all.push('x'.repeat(1e6) + all.length); }",
    )
    with pytest.raises(GuestError, match=r"memory|ENOMEM"):
        isthmus_runtime.spawn(bomb, limits=Limits(memory_nbytes=64 << 20)).send("hi")


@pytest.mark.parametrize(
    "source",
    [
        "function onMessage() { return onMessage(); }",
        "const o = { get x() { return o.x; } }; const onMessage = () => o.x;",
        "const o = { toString() { return `${o}`; } }; const onMessage = () => `${o}`;",
        "const f = () => [1, 2].sort(f); const onMessage = f;",
        "function* f() { yield* f(); } const onMessage = () => [...f()];",
    ],
)
def test_deep_calls_are_errors_after_which_the_agent_goes_on(
    source: str, isthmus_runtime: Runtime, tmp_path: Path
) -> None:
    source = f"{source}\nglobalThis.onMessage = onMessage;"
    agent = isthmus_runtime.spawn(script(tmp_path, source))
    for _ in range(2):
        with pytest.raises(GuestFailed, match="Maximum call stack size exceeded"):
            agent.send("hi")


def test_what_is_no_script_is_refused(isthmus_runtime: Runtime, tmp_path: Path) -> None:
    for contents, complaint in (
        (b"\xff\xfe", "not UTF-8"),
        (b"a\0b", "NUL"),
        (b"x" * 600_000, "more than"),
    ):
        path = tmp_path / "agent.js"
        path.write_bytes(contents)
        with pytest.raises(GuestInvalid, match=complaint):
            isthmus_runtime.spawn(path)
    with pytest.raises(GuestInvalid, match=r"cannot read .*none\.js: No such file"):
        isthmus_runtime.spawn(tmp_path / "none.js")


def test_the_command_line_runs_a_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = script(tmp_path, "function onMessage(text) { return `You said ${text}.`; }")
    assert main(["run", str(path), "--message", "hi"]) == 0
    assert capsys.readouterr().out.strip() == "You said hi."
