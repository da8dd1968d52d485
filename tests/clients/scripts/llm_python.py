"""`llm`, the command line: chat completions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from features import ANSWER, ENDLESS, MAX_TOKENS, MODEL, QUESTION, SCRIPTED, TASK, URL, WEATHER, run

PROGRAM = str(Path(sys.executable).parent / "llm")
MODELS = f"""\
- model_id: talks
  model_name: {MODEL}
  api_base: "{URL}/v1"
  supports_schema: true
- model_id: scripted
  model_name: {SCRIPTED}
  api_base: "{URL}/v1"
  supports_tools: true
"""
WEATHER_TOOL = f"""
def weather(city: str) -> str:
    "The weather of a city."
    return {WEATHER}[city]
"""
home = Path("llm").absolute()
home.mkdir()
(home / "extra-openai-models.yaml").write_text(MODELS)
environment = {**os.environ, "LLM_USER_PATH": str(home), "OPENAI_API_KEY": "x"}


def llm(*options: str) -> str:
    command = [PROGRAM, "prompt", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def stream() -> None:
    asked = ("-m", "talks", "-o", "max_tokens", "20", "-o", "temperature", "0", QUESTION)
    assert llm(*asked) == llm("--no-stream", *asked) != ""


def structured() -> None:
    asked = ("-m", "talks", "-o", "max_tokens", "60", "-o", "temperature", "0")
    done = llm(*asked, "--schema", "name, age int", "Bob is 30.")
    assert set(json.loads(done)) == {"name", "age"}


def tools() -> None:
    said = llm("-m", SCRIPTED, "--functions", WEATHER_TOOL, TASK)
    assert said == ANSWER


def cancel() -> None:
    command = [PROGRAM, "prompt", "-m", SCRIPTED, "-o", "max_tokens", str(MAX_TOKENS), ENDLESS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as running:
        assert running.stdout is not None
        assert running.stdout.read(1)
        running.kill()


run(stream, structured, tools, cancel)
