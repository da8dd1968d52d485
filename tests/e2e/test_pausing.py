"""Actors in the middle of an answer: paused, saved, forked, evicted, resumed; and bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from isthmus import Actor, Limits, Model, Runtime
from isthmus.errors import (
    ActorBusy,
    AnswerPaused,
    DeadlineExceeded,
    LimitExceeded,
    SettingsError,
)
from isthmus.snapshot import open_snapshot
from tests.e2e.test_cli import complains, isthmus
from tests.exact.pausing import at_every_pause, paused_at, saved_at

MESSAGE = "Tell me a story."
CHAT = ["n_ctx=512", "max_tokens=24", "seed=3", "regex=[a-z ]{200,}"]


@pytest.fixture(scope="module")
def shared() -> Iterator[Runtime]:
    with Runtime(device="cpu", threads=2) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def model(shared: Runtime, tiny: Path) -> Model:
    return shared.load_model(tiny)


@pytest.fixture
def actor(shared: Runtime, model: Model) -> Iterator[Actor]:
    with shared.spawn("chat", models={"default": model}, args=CHAT, seed=1) as actor:
        yield actor


@pytest.fixture(scope="module")
def expected(shared: Runtime, model: Model) -> str:
    with shared.spawn("chat", models={"default": model}, args=CHAT, seed=1) as actor:
        return actor.send(MESSAGE).text


# ---------------------------------------------------------------------------------- the API


def test_whoever_asks_while_it_answers_gets_the_next_token(
    shared: Runtime, model: Model, actor: Actor, expected: str, tmp_path: Path
) -> None:
    stream = actor.stream(MESSAGE)
    saved = actor.snapshot(tmp_path / "mid.safetensors")
    forks = actor.fork(2)
    assert "".join(stream) == expected
    for each in (*forks, shared.restore(saved, models={"default": model})):
        with each:
            rest = each.resume() if each.is_paused else None
            assert rest is None or ("".join(rest), rest.reply.text)[1] == expected


def test_a_paused_answer_ends_for_its_listener_and_goes_on_for_another(
    shared: Runtime, actor: Actor, expected: str
) -> None:
    said = paused_at(shared, actor, 9)
    assert 0 < len(said) < len(expected)
    with pytest.raises(ActorBusy, match="in the middle of an answer"):
        actor.send("Something else.")
    stream = actor.resume()
    assert said + "".join(stream) == expected == stream.reply.text
    assert not actor.is_paused
    with pytest.raises(ActorBusy, match="in the middle of no answer"):
        actor.resume()


def test_what_was_used_is_counted_once(shared: Runtime, model: Model, actor: Actor) -> None:
    with shared.spawn("chat", models={"default": model}, args=CHAT, seed=1) as control:
        reply = control.send(MESSAGE)
        usage = control.usage
    paused_at(shared, actor, 9)
    child = actor.fork()[0]
    for each in (actor, child):
        stream = each.resume()
        list(stream)
        assert stream.reply.n_tokens == reply.n_tokens
        assert each.n_messages == 1
    assert (actor.usage.tokens_in, actor.usage.tokens_out) == (usage.tokens_in, usage.tokens_out)
    assert actor.usage.output_nbytes == usage.output_nbytes
    assert (child.usage.tokens_in, child.usage.tokens_out) == (0, usage.tokens_out - 8)
    child.close()


def test_an_evicted_answer_comes_back(shared: Runtime, actor: Actor, expected: str) -> None:
    stream = actor.stream(MESSAGE)
    assert actor.evict() > 0
    assert actor.state == "evicted"
    if not actor.is_paused:  # it was evicted after its last token
        assert "".join(stream) == expected
        return
    with pytest.raises(AnswerPaused):
        list(stream)
    rest = actor.resume()
    list(rest)
    assert rest.reply.text == expected


def test_pause_without_an_answer_does_nothing(actor: Actor) -> None:
    assert not actor.pause()
    assert actor.state == "idle"


def test_a_paused_actor_may_be_closed(shared: Runtime, actor: Actor) -> None:
    paused_at(shared, actor, 3)
    actor.close()
    assert actor.state == "closed"


def test_a_guest_that_is_not_resumable_is_busy(shared: Runtime, model: Model) -> None:
    args = ["n_ctx=256"]
    with shared.spawn("bench", models={"default": model}, args=args) as bench:
        stream = bench.stream("sequence 100")
        with pytest.raises(ActorBusy, match="--resumable"):
            bench.pause()
        stream.close()


def test_the_next_message_remembers_the_answer(
    shared: Runtime, model: Model, actor: Actor, tmp_path: Path
) -> None:
    with shared.spawn("chat", models={"default": model}, args=CHAT, seed=1) as control:
        control.send(MESSAGE)
        second = control.send("And then?").text
    path = saved_at(shared, actor, 5, tmp_path / "mid.safetensors")
    with shared.restore(path, models={"default": model}) as restored:
        list(restored.resume())
        assert restored.send("And then?").text == second


# ---------------------------------------------------------------------------------- limits


def test_fuel_goes_on_where_it_was(shared: Runtime, model: Model, tmp_path: Path) -> None:
    limits = Limits(fuel=10**9)
    given = {"models": {"default": model}, "args": CHAT, "seed": 1, "limits": limits}
    with shared.spawn("chat", **given) as control:  # type: ignore[arg-type]
        control.send(MESSAGE)
        used = control.usage.fuel
    with shared.spawn("chat", **given) as actor:  # type: ignore[arg-type]
        path = saved_at(shared, actor, 9, tmp_path / "mid.safetensors")
    with shared.restore(path, models={"default": model}, limits=limits) as restored:
        list(restored.resume())
        before = open_snapshot(path).manifest.actor.message
        assert before is not None
        assert used <= before.fuel + restored.usage.fuel < 1.02 * used  # getting back takes some
    tight = Limits(fuel=before.fuel + 1000)
    restored = shared.restore(path, models={"default": model}, limits=tight)
    with restored, pytest.raises(LimitExceeded, match="fuel"):
        list(restored.resume())


def test_stricter_limits_hold_for_the_rest(
    shared: Runtime, model: Model, actor: Actor, tmp_path: Path
) -> None:
    path = saved_at(shared, actor, 9, tmp_path / "mid.safetensors")
    limits = Limits(tokens_out=12)
    with shared.restore(path, models={"default": model}, limits=limits) as restored:
        stream = restored.resume()
        list(stream)
        assert stream.reply.limits_reached == ("tokens_out",)
        assert restored.usage.tokens_out == 4  # 8 were before


def test_time_that_passes_while_it_is_paused_is_not_its_own(
    shared: Runtime, model: Model, expected: str
) -> None:
    limits = Limits(deadline_s=1000)
    given = {"models": {"default": model}, "args": CHAT, "seed": 1, "limits": limits}
    with shared.spawn("chat", **given) as actor:  # type: ignore[arg-type]
        paused_at(shared, actor, 9)
        paused = actor._keeper.paused
        assert paused is not None
        assert 0 < paused.seconds_left < 1000  # type: ignore[operator]
        with pytest.raises(DeadlineExceeded):
            list(actor.fork()[0].resume(deadline_s=1e-9))
        stream = actor.resume()
        list(stream)
        assert stream.reply.text == expected
        assert stream.reply.seconds > paused.seconds


def test_undo_goes_back_to_the_pause(shared: Runtime, model: Model, expected: str) -> None:
    limits = Limits(on_failure="undo")
    given = {"models": {"default": model}, "args": CHAT, "seed": 1, "limits": limits}
    with shared.spawn("chat", **given) as actor:  # type: ignore[arg-type]
        paused_at(shared, actor, 9)
        with pytest.raises(DeadlineExceeded):
            list(actor.resume(deadline_s=1e-9))
        assert actor.is_paused
        stream = actor.resume()
        list(stream)
        assert stream.reply.text == expected


# ---------------------------------------------------------------------------------- tools


def test_a_tool_that_works_is_never_called_twice(shared: Runtime, tmp_path: Path) -> None:
    calls, began, goes_on = [], threading.Event(), threading.Event()

    def slow(city: str = "") -> str:
        calls.append(city)
        began.set()
        goes_on.wait()
        return "sunny"

    call = json.dumps({"name": "slow", "arguments": {"city": "Oslo"}})
    model = shared.load_model(f"fake:<tool_call>{call}</tool_call>||It is sunny today, I hear.")
    given = {"models": {"default": model}, "tools": {"slow": slow}}
    with shared.spawn("chat", args=["n_ctx=2048"], **given) as actor:  # type: ignore[arg-type]
        stream = actor.stream("How is the weather?")
        began.wait()
        for refused in (actor.pause, actor.fork, lambda: actor.snapshot(tmp_path / "mid")):
            with pytest.raises(ActorBusy, match="a tool works for the actor"):
                refused()
        goes_on.set()
        text = "".join(stream)
    assert calls == ["Oslo"]
    assert text == "It is sunny today, I hear."


def test_an_answer_with_tools_goes_on_at_each_token(shared: Runtime, tmp_path: Path) -> None:
    calls: list[str] = []

    def weather(city: str = "") -> str:
        calls.append(city)
        return "sunny"

    call = json.dumps({"name": "weather", "arguments": {"city": "Oslo"}})
    said = "It is sunny today, I hear."
    model = shared.load_model(f"fake:Let me see. <tool_call>{call}</tool_call>||{said}")
    given = {"models": {"default": model}, "tools": {"weather": weather}}
    files: list[Path] = []
    with shared.spawn("chat", args=["n_ctx=2048"], **given) as actor:  # type: ignore[arg-type]

        def save(n: int) -> None:
            path = tmp_path / f"{n}.safetensors"
            files.append(actor._keeper.while_paused(lambda: actor._keeper.save(path)).path)

        _, reply = at_every_pause(shared, actor, "How is the weather?", save)
    n_before = [len(message_of(it).tool_calls) for it in files]
    assert set(n_before) == {0, 1}
    for path, n in zip(files, n_before, strict=True):
        calls.clear()
        with shared.restore(path, **given) as restored:  # type: ignore[arg-type]
            stream = restored.resume()
            list(stream)
            assert stream.reply.text == reply.text
            assert [it.name for it in stream.reply.tool_calls] == ["weather"]
        assert calls == ["Oslo"] * (1 - n)


def message_of(path: Path):  # type: ignore[no-untyped-def]
    message = open_snapshot(path).manifest.actor.message
    assert message is not None
    return message


def test_snapshot_settings_are_checked_in_the_middle_too(actor: Actor, tmp_path: Path) -> None:
    stream = actor.stream(MESSAGE)
    with pytest.raises(SettingsError, match="name and base are for stores"):
        actor.snapshot(tmp_path / "mid.safetensors", name="x")
    list(stream)


# ---------------------------------------------------------------------------------- command line


def test_ctrl_z_leaves_in_the_middle_of_an_answer(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "chat.safetensors"
    options = ["--arg", "max_tokens=500", "--arg", "n_ctx=1024", "--arg", "regex=[a-z ]{5000,}"]
    begun = ["--model", str(tiny), "--seed", "1", *options]
    whole = isthmus("chat", *begun, stdin="Tell me a story.\n")
    assert whole.returncode == 0, whole.stderr
    command = [sys.executable, "-m", "isthmus", "chat", "--resume", str(file), *begun]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"Tell me a story.\n")
        first = os.read(process.stdout.fileno(), 3)
        process.send_signal(signal.SIGTSTP)
        rest, said = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, said
    told = (first + rest).decode().removesuffix("\n")
    assert whole.stdout.startswith(told)
    assert len(told) < len(whole.stdout) - 1
    seen = isthmus("inspect", file)
    assert "resumable" in seen.stdout
    assert "it is in the middle of one" in seen.stdout
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(file.read_bytes())
    resumed = isthmus("chat", "--resume", file, "--model", tiny, stdin="")
    assert resumed.stdout == whole.stdout, resumed.stderr
    restored = isthmus("restore", copy, "--model", tiny)
    assert told + restored.stdout == whole.stdout, restored.stderr


def test_forks_of_an_answer_with_other_seeds(
    shared: Runtime, model: Model, actor: Actor, tiny: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mid.safetensors"
    said = paused_at(shared, actor, 9)
    actor.snapshot(file)
    texts = []
    for seed in (1, 2, 3):
        (child,) = actor.fork(args=[*CHAT[:2], f"seed={seed}", *CHAT[3:]])
        with child:
            stream = child.resume()
            texts.append(said + "".join(stream))
            assert stream.reply.text == texts[-1]
    assert len(set(texts)) == 3
    again = actor.resume()
    list(again)
    assert again.reply.text == texts[2]  # the seed that it had
    done = isthmus("fork", file, "--model", tiny, "--seed", "1", "--seed", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"--- 1: seed 1\n{texts[0]}\n--- 2: seed 2\n{texts[1]}\n"
    complains(isthmus("fork", file, "--model", tiny, "--message", "Hi"), 2, "give --seed for each")
