"""What a scripted model says in conversations with tools."""

from __future__ import annotations

from pathlib import Path

from tests.clients.scripted import Play, ScriptedModel, Step, call

PLAYS = (
    Play(
        "weather in Rome",
        (
            Step(("Let me look.\n" + call("weather", {"city": "Rome"})[0],), "sunny"),
            Step(call("clock", {"zone": "Rome"}), "noon"),
            Step(("It is noon, and sunny.",)),
        ),
    ),
    Play(
        "weather in Atlantis",
        (
            Step(call("weather", {"city": "Atlantis"}), "error: "),
            Step(("I do not know.",)),
        ),
    ),
    Play("for ever", (Step(call("weather", {"city": "nowhere"})),)),
    Play("the page", (Step(call("http_fetch", {"url": "URL"}), "words of the page"),)),
    Play(
        "time at the server",
        (
            Step(call("server_get_current_time", {"timezone": "Etc/UTC"}), '"timezone"'),
            Step(("Now I know the time.",)),
        ),
    ),
    Play(
        "pay",
        (
            Step(call("pay", {"sum": "10"}), "paid"),
            Step(call("ship", {"to": "Rome"}), "shipped"),
            Step(("It is on its way.",)),
        ),
    ),
)


def scripted(folder: Path, url: str = "http://127.0.0.1/") -> Path:
    """The model's file. `url` is the page that it fetches."""
    plays = [
        Play(
            play.task,
            tuple(
                Step(tuple(it.replace("URL", url) for it in step.texts), step.result)
                for step in play.steps
            ),
        )
        for play in PLAYS
    ]
    fetch = next(it for it in plays if it.task == "the page")
    plays[plays.index(fetch)] = Play(fetch.task, (*fetch.steps, Step(("I read it.",))))
    return ScriptedModel(tuple(plays), n_ctx=8192).write(folder / "scripted.gguf")
