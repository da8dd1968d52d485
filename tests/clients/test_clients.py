"""Clients that people use, unmodified, each in an environment of its own (`make test-clients`)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.conftest import Serving

pytestmark = [pytest.mark.long, pytest.mark.model]
LANGCHAIN = """
import sys
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

model = ChatOpenAI(base_url=sys.argv[1], api_key="x", model="smollm2", temperature=0, max_tokens=80)
whole = model.invoke("What is an isthmus?")
assert whole.usage_metadata["output_tokens"] > 5
assert "".join(it.content for it in model.stream("What is an isthmus?")) == whole.content

class Person(BaseModel):
    name: str
    age: int

assert isinstance(
    model.with_structured_output(Person, method="json_schema").invoke("Bob is 30."), Person
)

@tool
def weather(city: str) -> str:
    "The weather of a city."
    return "sunny"

[call] = model.bind_tools([weather], tool_choice="weather").invoke("Weather in Paris?").tool_calls
assert (call["name"], set(call["args"])) == ("weather", {"city"})
print("good")
"""
LLM_MODELS = """\
- model_id: smol
  model_name: smollm2
  api_base: "{url}/v1"
"""


@pytest.fixture(scope="module")
def server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    serving = Serving(tmp_path_factory.mktemp("data"), "--model", f"smollm2={smollm2}")
    yield serving
    assert serving.stop() == 0


def installed(folder: Path, package: str) -> Path:
    """A new environment with a package; its folder of programs."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, package], check=True)
    return folder / "bin"


def test_langchain(server: Serving, tmp_path: Path) -> None:
    programs = installed(tmp_path / "environment", "langchain-openai>=1.7")
    command = [str(programs / "python"), "-c", LANGCHAIN, f"{server.url}/v1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "good\n", done.stderr


def test_llm(server: Serving, tmp_path: Path) -> None:
    programs = installed(tmp_path / "environment", "llm>=0.36")
    home = tmp_path / "llm"
    home.mkdir()
    (home / "extra-openai-models.yaml").write_text(LLM_MODELS.format(url=server.url))
    environment = {**os.environ, "LLM_USER_PATH": str(home), "OPENAI_API_KEY": "x"}
    command = [str(programs / "llm"), "-m", "smol", "-o", "max_tokens", "20", "What is an isthmus?"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 3
