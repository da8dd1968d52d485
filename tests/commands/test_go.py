"""A program that `go build` made, in a pipe: its runtime's threads, sleeps and exits by WASI."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from isthmus.errors import ToolchainMissing
from isthmus.projects.toolchain import find_go
from isthmus.runtime import Runtime
from tests.commands.guests import HERE
from tests.commands.test_shell import run, started

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where upper.wasm is."""
    try:
        go = find_go()
    except ToolchainMissing as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("go")
    environment = {**os.environ, **go.environment, "GOFLAGS": ""}
    command = [
        *go.command,
        "build",
        "-trimpath",
        "-o",
        str(folder / "upper.wasm"),
        str(HERE / "upper.go"),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    with Runtime(device="null") as runtime:
        runtime.load_guest(
            folder / "upper.wasm"
        )  # Go's runtime compiles for long, and is kept then
    return folder


def test_streams_and_status(folder: Path) -> None:
    done = run(folder, "upper", "--env", "WHO=me", input=b"one\ntwo\nlast")
    assert (done.returncode, done.stdout) == (0, b"ONE\nTWO\nLAST\n")
    assert done.stderr == b"3 lines for me, 1 h\n"  # by the virtual clock
    done = run(folder, "upper", input=b"")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"", b"0 lines for , 1 h\n")


def test_lines_pass_as_they_come_and_ctrl_c_ends_it(folder: Path) -> None:
    with started(folder, "upper") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in (b"one\n", b"two\n"):
            process.stdin.write(line)
            assert process.stdout.read(4) == line.upper()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


def test_a_pipe_that_nobody_reads_any_longer(folder: Path) -> None:
    with started(folder, "upper", "--", "yes") as process:
        assert process.stdout is not None
        assert process.stdout.read(4) == b"y\ny\n"
        process.stdout.close()
        assert process.wait(60) == 128 + signal.SIGPIPE


def test_a_panic(folder: Path) -> None:
    done = run(folder, "upper", "--", "panic")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"panic: on purpose" in done.stderr
    assert b"upper.go:" in done.stderr  # Go's own trace
