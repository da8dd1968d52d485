"""Programs as tools: pipes, failures, and the end of all that they start."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from isthmus import Runtime
from isthmus.errors import Cancelled, SettingsError, ToolFailed
from isthmus.tools import CommandTool, ToolLimits
from isthmus.tools.command import program_of
from isthmus.units import MIB
from tests.tools.guests import CALLER

LONG = ToolLimits(deadline_s=120)


def python(code: str, *words: str) -> list[str]:
    return [sys.executable, "-c", code, *words]


def run(code: str, data: bytes = b"", limits: ToolLimits = LONG) -> bytes:
    return CommandTool(program=program_of(python(code)), limits=limits).run(data, lambda: None)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "pid"


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_gone(pid: int) -> None:
    end = time.monotonic() + 60
    while is_alive(pid):
        assert time.monotonic() < end, f"{pid} lives on"
        time.sleep(0.01)


def test_arguments_go_in_and_the_result_comes_out() -> None:
    code = "import sys, json; print(json.load(sys.stdin)['a'] * 2)"
    assert run(code, b'{"a": 21}') == b"42"
    many = os.urandom(3 * MIB)
    echo = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())"
    assert run(echo, many, ToolLimits(120, 4 * MIB)) == many


def test_a_program_that_reads_nothing() -> None:
    assert run("print('a\\nb')", b"x" * MIB) == b"a\nb"


def test_no_shell_reads_the_words(tmp_path: Path) -> None:
    code = "import sys; print(sys.argv[1:])"
    line = f"{sys.executable} -c \"{code}\" 'a b' '$HOME' '*' '|' '>x'"
    tool = CommandTool(program=program_of(line, tmp_path), limits=LONG)
    assert tool.run(b"", lambda: None) == b"['a b', '$HOME', '*', '|', '>x']"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import sys; sys.exit('no such city')", "^exit status 1: no such city$"),
        ("import os; os.kill(os.getpid(), 9)", "^signal 9$"),
        ("import sys; sys.stderr.write('x' * 100_000 + 'END'); sys.exit(3)", "xEND$"),
    ],
)
def test_failures(code: str, expected: str) -> None:
    with pytest.raises(ToolFailed, match=expected) as told:
        run(code)
    assert len(str(told.value)) < 5000


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_gigabyte_of_output_is_not_kept(stream: str) -> None:
    n = 1024 if stream == "stdout" else 128  # all of it is read: only the end is kept
    code = f"import sys\nfor _ in range({n}): sys.{stream}.write('x' * 2**20)\nsys.exit(1)"
    expected = "longer than 1.0 MiB" if stream == "stdout" else "^exit status 1: x+$"
    with pytest.raises(ToolFailed, match=expected):
        run(code)


def test_one_that_hangs_is_ended_with_all_that_it_started(marker: Path) -> None:
    code = f"""
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
open({str(marker)!r} + '.new', 'w').write(str(child.pid))
os.rename({str(marker)!r} + '.new', {str(marker)!r})
time.sleep(600)"""
    begun = []

    def check() -> None:
        if marker.exists():
            begun.append(int(marker.read_text()))
            raise Cancelled("enough")

    tool = CommandTool(program=program_of(python(code)), limits=LONG)
    with pytest.raises(Cancelled):
        tool.run(b"", check)
    wait_gone(begun[0])


def test_one_that_takes_too_long() -> None:
    with pytest.raises(ToolFailed, match=r"did not answer within 0.3 s"):
        run("import time; time.sleep(600)", limits=ToolLimits(deadline_s=0.3))


def test_what_a_program_leaves_behind_holds_nobody_up(marker: Path) -> None:
    code = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
open({str(marker)!r}, 'w').write(str(child.pid))
print('done')"""
    assert run(code) == b"done"
    wait_gone(int(marker.read_text()))


def test_a_program_that_closes_its_output_and_goes_on() -> None:
    code = "import os, time; os.write(1, b'early'); os.close(1); os.close(2); time.sleep(0.2)"
    assert run(code) == b"early"


def test_what_is_no_command(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("not to be run")
    for words, expected in {
        "": "is no command",
        "'": "no closing quotation",
        "no-such-program-here -x": "there is no program no-such-program-here that can be run",
        str(tmp_path / "plain"): "that can be run",
    }.items():
        with pytest.raises(SettingsError, match=expected):
            program_of(words)
    with pytest.raises(SettingsError, match="is no command"):
        program_of(["a\0b"])


def test_by_a_guest(null_runtime: Runtime) -> None:
    tools = {
        "upper": CommandTool(
            program=program_of(python("import sys; print(sys.stdin.read().upper())"))
        ),
        "fails": CommandTool(program=program_of(python("import sys; sys.exit('it broke')"))),
    }
    actor = null_runtime.spawn(CALLER, tools=tools)
    assert actor.send("=upper abc").text == "ABC"
    assert actor.send("=fails x").text == "exit status 1: it broke"
    with pytest.raises(ToolFailed, match="'fails' failed: exit status 1: it broke"):
        actor.send("!fails x")
