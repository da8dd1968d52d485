"""The loop of tools with all kinds of them, by every way to run a guest."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from isthmus import Runtime
from isthmus.tools.spec import Toolbox, specs_of_table
from tests.server.conftest import Serving
from tests.tools.plays import scripted
from tests.tools.test_chat import ROME, SAID
from tests.tools.test_cli import MODULE, isthmus
from tests.tools.test_fetch import port  # noqa: F401 - a fixture

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MESSAGES = {
    ROME: (SAID, ["weather", "clock"]),
    "What is the time at the server?": ("Now I know the time.", ["server_get_current_time"]),
    "Read the page.": ("I read it.", ["http_fetch"]),
}
ARGS = ("--arg", "temperature=0", "--arg", "n_ctx=4096")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, port: int) -> Path:  # noqa: F811
    """A function, a command, an MCP server and pages, in one file."""
    folder = tmp_path_factory.mktemp("everywhere")
    scripted(folder, f"http://127.0.0.1:{port}/x")
    (folder / "sky.py").write_text(MODULE)
    server = json.dumps([sys.executable, "-m", "mcp_server_time"])
    (folder / "tools.toml").write_text(
        f"""[tools]
weather = "sky:weather"
clock = "echo noon"
http_fetch = {{ hosts = ["127.0.0.1:{port}"] }}

[tools.server]
mcp = {server}
"""
    )
    return folder


@pytest.mark.slow
def test_run(folder: Path) -> None:
    words = ("run", "chat", "--model", "scripted.gguf", *ARGS, "--tools", "tools.toml", "--json")
    for message in list(MESSAGES)[1:2]:  # each is a process of its own
        said, names = MESSAGES[message]
        report = json.loads(isthmus(folder, *words, "--message", message).stdout)
        assert report["reply"] == said
        assert [it["name"] for it in report["tool_calls"]] == names


@pytest.mark.slow
def test_chat(folder: Path) -> None:
    words = ("chat", "--model", "scripted.gguf", *ARGS, "--tools", "tools.toml")
    given = "".join(f"{message}\n/new\n" for message in MESSAGES)
    done = isthmus(folder, *words, given=given)
    assert done.stdout.splitlines() == [
        line for said, _ in MESSAGES.values() for line in said.splitlines()
    ]
    for _, names in MESSAGES.values():
        assert f"[{', '.join(names)}]" in done.stderr


@pytest.mark.slow
def test_chat_with_copies_in_between(folder: Path) -> None:
    """A tool runs once, whatever becomes of the conversation: copied, left, saved, brought back."""
    words = ("chat", "--model", "scripted.gguf", *ARGS, "--tools", "tools.toml")
    for n, (message, (said, names)) in enumerate(MESSAGES.items()):
        last = said.splitlines()[-1]
        file = f"{n}.safetensors"
        more = (
            "/fork",
            "And now?",
            "/back",
            f"/save {file}",
            "And now?",
            f"/load {file}",
            "And now?",
        )
        done = isthmus(folder, *words, given="\n".join([message, *more, ""]))
        assert done.stdout.splitlines() == [*said.splitlines(), last, last, last]
        assert done.stderr.count("[") == done.stderr.count(f"[{', '.join(names)}]") == 1


@pytest.mark.slow
def test_serve(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)  # where sky.py is
    options = ("--config", "tools.toml", "--model", "scripted=scripted.gguf", "--n-ctx", "4096")
    serving = Serving(folder / "data", *options)
    tools = [it["id"] for it in serving.get("/v1/tools")["data"]]
    made = []
    try:
        for message, (said, names) in MESSAGES.items():
            agent = serving.post("/v1/agents", {"args": {"temperature": "0"}, "tools": tools})
            told = serving.post(f"/v1/agents/{agent['id']}/messages", {"input": message})
            assert told["output"] == said
            assert [it["name"] for it in told["tool_calls"]] == names
            made.append((agent["id"], said.splitlines()[-1]))
        serving.kill()
        serving.start()
        for id_, last in made:
            fork = serving.post(f"/v1/agents/{id_}/fork", {"position": 1})["id"]
            for each in (id_, fork):
                path = f"/v1/agents/{each}/messages"
                told = serving.post(path, {"input": "And now?"})
                assert (told["output"], told["tool_calls"]) == (last, [])
    finally:
        assert serving.stop() == 0


@pytest.mark.slow
def test_python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And forks and restored agents in between."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    table = tomllib.loads((folder / "tools.toml").read_text())["tools"]
    with Toolbox(specs_of_table(table, "tools.toml")) as box, Runtime(device="cpu") as runtime:
        models = {"default": runtime.load_model(folder / "scripted.gguf")}
        args = {"temperature": 0, "n_ctx": 4096}
        origin = runtime.spawn("chat", models=models, tools=box.tools, args=args)
        origin.snapshot(folder / "origin.safetensors")
        for message, (said, names) in MESSAGES.items():
            [fork] = origin.fork()
            again = runtime.restore(folder / "origin.safetensors", models=models, tools=box.tools)
            for actor in (fork, again):
                reply = actor.send(message)
                assert (reply.text, [it.name for it in reply.tool_calls]) == (said, names)
        assert origin.n_messages == 0
