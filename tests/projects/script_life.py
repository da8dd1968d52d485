"""What an agent of any script's language is asked, and must answer."""

from __future__ import annotations

from pathlib import Path

from isthmus.model import Model
from isthmus.runtime import Runtime


def live(runtime: Runtime, model: Model, script: Path, folder: Path) -> None:
    """An agent that talks, has a tool, is forked and saved. It counts its answers if told so."""
    models, asked = {"default": model}, []

    def lookup(arguments: bytes) -> bytes:
        asked.append(arguments)
        return b"land"

    tools = {"lookup": lookup}
    agent = runtime.spawn(script, models=models, tools=tools, args={"temperature": 0})
    assert list(agent.stream("héllo")) == ["First", " öne."]
    assert asked == ["héllo".encode()]
    saved = agent.snapshot(folder / "agent.safetensors")
    (child,) = agent.fork()
    again = runtime.restore(saved, models=models, tools=tools)
    for it in (agent, child, again):
        assert it.send("count").text == "1 answers"
        assert it.send("more").text == "And a second."
