"""Tools by the command line: `run`, `chat`, `snapshot`, `restore` and `fork`."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from isthmus.cli import main
from tests.tools.guests import CALLER
from tests.tools.plays import scripted
from tests.tools.test_chat import ROME, SAID
from tests.tools.test_command import wait_gone
from tests.tools.test_mcp import LIAR

MODULE = '''
def weather(city: str) -> str:
    """The weather of a city."""
    return "sunny"
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    scripted(folder)
    (folder / "sky.py").write_text(MODULE)
    (folder / "caller.wasm").write_bytes(CALLER)
    program = [sys.executable, str(LIAR), "good"]
    (folder / "tools.toml").write_text(
        f"""[tools]
weather = "sky:weather"
clock = {{ command = "echo noon", description = "The time." }}
liar = {{ mcp = {json.dumps(program)} }}
"""
    )
    return folder


def isthmus(
    folder: Path, *words: str, given: str = "", code: int = 0
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "isthmus", *words]
    done = subprocess.run(
        command, cwd=folder, input=given, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == code, done.stderr
    return done


MODEL = ("--model", "scripted.gguf")
CHAT = (
    *MODEL,
    "--device",
    "cpu",
    "--threads",
    "1",
    "--arg",
    "n_ctx=2048",
    "--arg",
    "temperature=0",
)
TOOLS = ("--tool", "weather=sky:weather", "--tool", "clock=echo noon")


def test_run(folder: Path) -> None:
    done = isthmus(folder, "run", "chat", *CHAT, *TOOLS, "--message", ROME)
    assert (done.stdout, done.stderr) == (SAID, "")
    done = isthmus(folder, "run", "chat", *CHAT, "--tools", "tools.toml", "--json", given=ROME)
    report = json.loads(done.stdout)
    assert report["reply"] == SAID
    assert [it["name"] for it in report["tool_calls"]] == ["weather", "clock"]


def test_chat_goes_on_and_is_resumed(folder: Path) -> None:
    saved = ("--resume", "it.safetensors")
    done = isthmus(folder, "chat", *CHAT, *TOOLS, *saved, given=f"{ROME}\nAnd now?\n")
    assert done.stdout.splitlines() == [*SAID.splitlines(), SAID.splitlines()[-1]]
    assert "[weather, clock]" in done.stderr
    done = isthmus(folder, "chat", "--threads", "1", *TOOLS, *saved, given="And then?\n")
    assert done.stdout.splitlines() == SAID.splitlines()[-1:]
    done = isthmus(folder, "chat", "--threads", "1", *saved, given="And then?\n", code=2)
    assert "the tool 'clock', the tool 'weather'" in done.stderr
    assert "--tool NAME=COMMAND" in done.stderr


def test_snapshot_restore_and_fork(folder: Path) -> None:
    out = ("--out", "saved.safetensors")
    isthmus(folder, "snapshot", "chat", *CHAT, *TOOLS, "--message", ROME, *out)
    asked = ("saved.safetensors", "--threads", "1", *TOOLS, "--message", "And now?")
    last = SAID.splitlines()[-1]
    assert isthmus(folder, "restore", *asked).stdout.strip() == last
    assert last in isthmus(folder, "fork", *asked).stdout


def test_a_reply_that_was_not_emitted_is_shown(folder: Path) -> None:
    tools = ("--tool", "shout=tr a-z A-Z")
    words = ("chat", "--guest", "caller.wasm", "--device", "null", *MODEL, *tools)
    done = isthmus(folder, *words, given="=shout abc\n=shout def\n")
    assert done.stdout == "ABC\nDEF\n"


def test_failures(folder: Path) -> None:
    null = ("--device", "null")
    fails = ("--tool", "fails=false")
    done = isthmus(folder, "run", "caller.wasm", *null, *fails, "--message", "!fails x", code=1)
    assert "isthmus: the tool 'fails' failed: exit status 1" in done.stderr
    assert "Traceback" not in done.stderr
    done = isthmus(folder, "run", "caller.wasm", *null, *fails, "--message", "!other x", code=1)
    assert "named 'other', and it was given fails" in done.stderr


def test_ctrl_c_ends_a_command_that_hangs(folder: Path) -> None:
    code = "import os, time; open('new', 'w').write(str(os.getpid())); os.rename('new', 'pid'); "
    hangs = shlex.join([sys.executable, "-c", f"{code}time.sleep(600)"])
    words = ["run", "caller.wasm", "--device", "null", "--tool", f"hangs={hangs}"]
    command = [sys.executable, "-m", "isthmus", *words, "--message", "=hangs x"]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    while not (folder / "pid").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert (process.returncode, "Traceback" in said) == (130, False)
    wait_gone(int((folder / "pid").read_text()))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tool", "x"], "--tool x: give NAME=COMMAND or NAME=MODULE:FUNCTION"),
        (["--tool", "x=no-such-program"], "there is no program no-such-program"),
        (["--mcp", "x"], "--mcp x: give NAME=COMMAND or NAME=URL"),
        (["--mcp", "x=false"], "the MCP server"),
        (["--fetch", "a b"], "'a b' is no host"),
        (["--tools", "none.toml"], "cannot read none.toml"),
        (["--tools", "sky.py"], "sky.py is not TOML"),
        (["--tool", "x=cat", "--tool", "x=cat"], "there are two tools named x"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(
    folder: Path,
    words: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    assert main(["run", "chat", *MODEL, *words, "--message", "x"]) == 2
    found = capsys.readouterr()
    assert said in found.err
    assert found.out == ""


def test_servers_by_the_command_line(folder: Path) -> None:
    server = f"liar={sys.executable} {LIAR} good"
    words = ("run", "caller.wasm", "--device", "null", "--mcp", server)
    done = isthmus(folder, *words, "--message", '=liar_echo {"a": 1}')
    assert done.stdout == '{"a": 1}'
