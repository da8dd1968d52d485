"""`aider`, the command line: chat completions, and an edit of a file in its `whole` form."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from features import ENDLESS, MODEL, QUESTION, SCRIPTED, TEXT_TASK, URL, run

COMMAND = (
    str(Path(sys.executable).parent / "aider"),
    "--yes-always",
    "--no-git",
    "--no-check-update",
    "--no-show-model-warnings",
    "--analytics-disable",
    "--no-pretty",
    "--no-auto-lint",
    "--map-tokens=0",
)
environment = {
    **os.environ,
    "HOME": str(Path.cwd()),
    "OPENAI_API_BASE": f"{URL}/v1",
    "OPENAI_API_KEY": "x",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}


def aider(model: str, *options: str) -> str:
    command = [*COMMAND, "--model", f"openai/{model}", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def n_received(*options: str) -> int:
    """Tokens of the model's answer, as aider counts them."""
    said = aider(MODEL, "--edit-format", "ask", *options, "--message", QUESTION)
    found = re.search(r"Tokens: \S+ sent, (\d+) received", said)
    assert found, said
    return int(found[1])


def stream() -> None:
    assert n_received() > 5


def hello() -> None:
    assert n_received("--no-stream") > 5


def tools() -> None:
    file = Path("hello.txt")
    file.write_text("hello world\n")
    said = aider(SCRIPTED, "--edit-format", "whole", "--message", TEXT_TASK, str(file))
    assert file.read_text() == "hello isthmus\n", said


def cancel() -> None:
    command = [*COMMAND, "--model", f"openai/{SCRIPTED}", "--edit-format", "ask"]
    with subprocess.Popen(
        [*command, "--message", ENDLESS], stdout=subprocess.PIPE, text=True, env=environment
    ) as running:
        assert running.stdout is not None
        assert any("one more" in line for line in iter(lambda: running.stdout.read(64), ""))
        running.kill()


run(hello, stream, tools, cancel)
