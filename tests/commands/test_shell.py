"""`isthmus run` of a command among other programs: pipes, statuses, signals."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isthmus.cli import main
from tests.commands.guests import CAT, READS_ON, YES, command
from tests.tiny_gguf import TinyLlama

pytestmark = pytest.mark.slow
ARGUMENTS = """
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get"
    (func $environ_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $environ (param i32 i32) (result i32)))
"""
SHOWS = """
  (drop (call $args_sizes (i32.const 512) (i32.const 516)))
  (drop (call $args (i32.const 520) (i32.const 1024)))
  (call $puts (i32.const 1) (i32.const 1024) (i32.load (i32.const 516)))
  (drop (call $environ_sizes (i32.const 512) (i32.const 516)))
  (drop (call $environ (i32.const 520) (i32.const 1024)))
  (call $puts (i32.const 1) (i32.const 1024) (i32.load (i32.const 516)))"""
"""Its arguments and variables, each with a zero byte behind it."""
SAYS_Y = """(i32.store (i32.const 1024) (i32.const 0x79))
  (call $puts (i32.const 1) (i32.const 1024) (i32.const 1))"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Commands by what they do."""
    folder = tmp_path_factory.mktemp("commands")
    says = r'(data (i32.const 2048) "oops\n")'
    warns = "(call $puts (i32.const 2) (i32.const 2048) (i32.const 5))"
    for name, wasm in {
        "cat": command(CAT),
        "yes": command(YES),
        "reads_on": command(READS_ON),
        "loops": command(f"{SAYS_Y} (loop $again (br $again))"),
        "fails": command(f"{CAT} {warns} (call $exit (i32.const 7))", says),
        "exits": command("(call $exit (i32.const 300))"),
        "traps": command("unreachable"),
        "shows": command(SHOWS, imports=ARGUMENTS),
    }.items():
        (folder / f"{name}.wasm").write_bytes(wasm)
    return folder


def words(folder: Path, name: str, *more: str) -> list[str]:
    guest = str(folder / f"{name}.wasm")
    return [sys.executable, "-m", "isthmus", "run", guest, "--device", "null", *more]


def run(folder: Path, name: str, *more: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    given = {"input": b""} if "stdin" not in options else {}
    return subprocess.run(
        words(folder, name, *more),
        capture_output=True,
        timeout=120,
        check=False,
        **given | options,  # type: ignore[arg-type]
    )


@contextlib.contextmanager
def started(folder: Path, name: str, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        words(folder, name, *more), stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_bytes_pass_unchanged(folder: Path) -> None:
    data = bytes(range(256)) * 500
    done = run(folder, "cat", input=data)
    assert (done.returncode, done.stdout, done.stderr) == (0, data, b"")


def test_lines_pass_as_they_come(folder: Path) -> None:
    with started(folder, "cat") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in (b"one\n", b"two\n"):
            process.stdin.write(line)
            assert process.stdout.read(4) == line
        process.stdin.close()
        assert process.stdout.read() == b""
        assert process.wait(60) == 0


def test_status_and_standard_error_are_the_guests(folder: Path) -> None:
    done = run(folder, "fails", input=b"in")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"in", b"oops\n")


def test_statuses(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(folder, "exits", "--message", "x")[3:]) == 125
    assert main(words(folder, "traps", "--message", "x")[3:]) == 1
    assert "isthmus: traps trapped: unreachable" in capsys.readouterr().err


def test_a_pipe_that_nobody_reads_any_longer(folder: Path) -> None:
    with started(folder, "yes") as process:
        assert process.stdout is not None
        assert process.stdout.read(4) == b"y\ny\n"
        process.stdout.close()
        assert process.wait(60) == 128 + signal.SIGPIPE
        assert process.stderr is not None
        assert process.stderr.read() == b""


@pytest.mark.parametrize("name", ["cat", "loops"])
def test_ctrl_c(folder: Path, name: str) -> None:
    with started(folder, name) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"y")
        assert process.stdout.read(1) == b"y", "it has begun once it answers"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()


def test_a_terminal_is_read_line_by_line_and_shown_no_controls(folder: Path) -> None:
    master, slave = os.openpty()
    with subprocess.Popen(words(folder, "cat"), stdin=slave, stdout=slave) as process:
        os.close(slave)
        try:
            os.write(master, b"one\x1b\n")
            told = b""
            while b"one\\x1b" not in told:
                told += os.read(master, 1000)
            os.write(master, b"\x04")
            assert process.wait(60) == 0
        finally:
            process.kill()
            os.close(master)


def test_input_that_ends_too_early(folder: Path) -> None:
    done = run(folder, "reads_on")
    assert done.returncode == 1
    assert b"give the prompt as an argument" in done.stderr


def test_a_closed_standard_input(folder: Path) -> None:
    line = " ".join(words(folder, "cat"))
    done = subprocess.run(
        ["sh", "-c", f"{line} <&-"], capture_output=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, b""), done.stderr


def test_arguments_and_variables(folder: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    variables = ("--message", "x", "--env", "B=1", "--env", "A=x=y", "--env", "B=2")
    assert main(words(folder, "shows", *variables, "--", "-v", "--")[3:]) == 0
    said = capsysbinary.readouterr().out
    assert said.split(b"\0") == [b"shows", b"-v", b"--", b"B=2", b"A=x=y", b""]
    assert main(words(folder, "shows", "--message", "x")[3:]) == 0
    assert capsysbinary.readouterr().out.split(b"\0") == [b"shows", b""]


def test_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words(folder, "cat", "--json", "--message", "hi")[3:]]) == 0
    assert json.loads(capsys.readouterr().out)["reply"] == "hi"
    assert main([*words(folder, "fails", "--json", "--message", "hi")[3:]]) == 7
    told = json.loads(capsys.readouterr().out)
    assert (told["reply"], told["error"]["type"]) == ("hi", "GuestExited")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--arg", "a=b"), "takes no options such as a=b"),
        (("--env", "A"), "give NAME=VALUE"),
        (("--nn-preload", "default:ONNX:CPU:x"), "give NAME:GGML:TARGET:PATH"),
        (("--nn-preload", "default:GGML:AUTO:/nowhere.gguf"), "there is no file /nowhere.gguf"),
    ],
)
def test_bad_options(
    folder: Path, more: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(folder, "cat", "--message", "x", *more)[3:]) == 2
    assert said in capsys.readouterr().err


def test_models_by_wasmedges_option(
    folder: Path, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    path = TinyLlama(with_tokenizer=True).write(tmp_path / "tiny.gguf")
    preload = f"default:GGML:AUTO:{path}"
    assert main(words(folder, "cat", "--nn-preload", preload, "--message", "x")[3:]) == 0
    assert capsysbinary.readouterr().out == b"x"


def test_what_is_for_commands_alone_and_what_is_not(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("x\n"))
    model = str(TinyLlama(with_tokenizer=True).write(tmp_path / "tiny.gguf"))
    null = ("--device", "null")
    for given, said in (
        (["run", "bench", *null, "--env", "A=b"], "is no command"),
        (["run", "bench", *null, "--", "x"], "is no command"),
        (
            ["chat", *null, "--guest", str(folder / "cat.wasm"), "--model", model],
            "talk with it by isthmus run",
        ),
    ):
        assert main(given) == 2
        assert said in capsys.readouterr().err
