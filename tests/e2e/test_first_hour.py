"""Commands that newcomers try: list, show, rm, ps, completion, and the words of `chat`."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from isthmus.cli import COMMANDS, main
from isthmus.cli import progress as progress_module
from isthmus.cli.colour import Style, painted
from isthmus.cli.progress import progress_bar
from isthmus.cli.talk import WORDS
from tests.e2e.test_cli import complains, guest, isthmus
from tests.patience import eventually
from tests.server.conftest import Serving
from tests.tiny_gguf import TinyLlama

LOGS = "(call $log (i32.const 1) (i32.const 0) (i32.const 10))"
"""Logs as information."""
CHAT = ("--arg", "max_tokens=4", "--device", "cpu", "--threads", "1")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder with one model that somebody put there."""
    folder = tmp_path / "cache"
    (folder / "models").mkdir(parents=True)
    TinyLlama(with_tokenizer=True).write(folder / "models" / "tiny.gguf")
    monkeypatch.setenv("ISTHMUS_CACHE", str(folder))
    return folder


def rows(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[dict[str, object]]:
    assert main([*map(str, arguments), "--json"]) == 0
    found: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return found


def test_models_are_listed_and_removed(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = rows(capsys, "list")
    assert row["model"] == "tiny"
    assert row["size"] == (cache / "models" / "tiny.gguf").stat().st_size
    assert main(["list"]) == 0
    assert "tiny" in capsys.readouterr().out
    assert main(["rm", "tiny", "tinny"]) == 2
    assert "did you mean tiny?" in capsys.readouterr().err
    assert rows(capsys, "list")  # nothing is removed unless everything can be
    assert main(["rm", "tiny"]) == 0
    assert main(["list"]) == 0
    assert "isthmus pull smollm2" in capsys.readouterr().err


def test_all_shards_of_a_model_are_removed(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        (cache / "models" / f"two-0000{number}-of-00002.gguf").write_bytes(b"x" * 10)
    assert [row["size"] for row in rows(capsys, "list") if row["model"] == "two"] == [20]
    assert main(["rm", "two"]) == 0
    assert [it.name for it in (cache / "models").glob("*.gguf")] == ["tiny.gguf"]


def test_what_is_no_snapshot_is_not_removed(cache: Path, tmp_path: Path) -> None:
    mine = tmp_path / "letter.txt"
    mine.write_text("Dear Ada")
    assert main(["rm", str(mine)]) == 2
    assert mine.exists()


def test_a_conversation_with_words(cache: Path, tmp_path: Path) -> None:
    typed = """\
/help
/speak
/system
/system Be brief.
/save
Hello
/back
/fork
/fork
Again
/back
//slash
/save {store}/ada
/load {store}/ada
/load {store}/nobody
Hello once more
/new
/bye
never read
"""
    store = tmp_path / "store"
    store.mkdir()
    model = cache / "models" / "tiny.gguf"
    done = isthmus("chat", "--model", model, *CHAT, stdin=typed.format(store=store))
    assert done.returncode == 0, done.stderr
    said = done.stderr
    for word in WORDS:
        assert f"\n  {word}" in f"\n{said}"
    for line in (
        "There is no /speak: /help lists what there is",
        "There is no system prompt",
        "Give it as: /save FILE|STORE/NAME",
        "There is nothing to go back to",
        "Back where the copy was made",
        "Restored chat, exact",
        "nobody",
    ):
        assert line in said, line
    assert said.count("This is a copy of the conversation") == 2
    assert said.count("A new conversation begins") == 2
    assert (store / "ada").exists()


def test_snapshots_are_listed_shown_and_removed(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, model = tmp_path / "kept", cache / "models" / "tiny.gguf"
    command = ("snapshot", "chat", "--model", str(model), *CHAT, "--message", "Hello")
    for name in ("ada", "bob"):
        assert main([*command, "--out", f"{store}/", "--name", name]) == 0
    (tmp_path / "other.safetensors").write_bytes(b"no snapshot")
    capsys.readouterr()
    assert [(row["snapshot"], row["messages"]) for row in rows(capsys, "list", store)] == [
        ("ada", 1),
        ("bob", 1),
    ]
    assert main(["show", f"{store}/ada"]) == 0
    assert "messages   1" in capsys.readouterr().out
    assert main(["show", str(model)]) == 0
    assert "llama" in capsys.readouterr().out
    assert main(["rm", f"{store}/ada"]) == 0
    assert [row["snapshot"] for row in rows(capsys, "list", store)] == ["bob"]
    assert main(["list", str(tmp_path)]) == 0  # a folder: what is none is said
    assert "other.safetensors" in capsys.readouterr().err


def test_messages_of_several_lines(cache: Path, tmp_path: Path) -> None:
    typed = '"""first\nsecond"""\none \\\nmessage\n/save {}\n'
    saved = tmp_path / "a.safetensors"
    model = cache / "models" / "tiny.gguf"
    done = isthmus("chat", "--model", model, *CHAT, stdin=typed.format(saved))
    assert done.returncode == 0, done.stderr
    seen = json.loads(isthmus("inspect", saved, "--json").stdout)
    assert seen["n_messages"] == 2
    assert "first\nsecond" in seen["sessions"][0]["text"]
    assert "one \nmessage" in seen["sessions"][0]["text"]


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_what_is_no_utf8_is_one_line(cache: Path, tmp_path: Path, locale: str) -> None:
    settings = tmp_path / "latin.toml"
    settings.write_bytes("# Zürich\nport = 1\n".encode("latin-1"))
    complains(isthmus("serve", "--config", settings), 2, "latin.toml is not UTF-8 text")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "isthmus",
            "chat",
            "--model",
            str(cache / "models" / "tiny.gguf"),
            *CHAT,
        ],
        input="Zürich\n".encode("latin-1"),
        capture_output=True,
        check=False,
        env={**os.environ, "LC_ALL": locale},
    )
    assert done.returncode == 2
    assert done.stderr.decode().splitlines()[-1].startswith("isthmus: what was typed is not UTF-8")


def test_a_server_is_listed(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = Serving(tmp_path / "data", "--model", f"tiny={tiny}", "--n-ctx", "256")
    server.post("/v1/agents", {"name": "Ada", "guest": "chat"})
    assert main(["list", server.url]) == 0
    said = capsys.readouterr().out
    assert "tiny" in said
    assert "Ada" in said
    assert main(["ps", server.url]) == 0
    assert re.search("tiny .* the server stops", capsys.readouterr().out)
    assert server.stop() == 0
    assert main(["ps", server.url]) == 2
    assert "is isthmus serve running there?" in capsys.readouterr().err
    assert main(["ps", "localhost"]) == 2


@functools.cache
def completion_script(shell: str) -> str:
    return isthmus("completion", shell).stdout


def completions(shell: str, line: str) -> list[str]:
    """What a shell offers for the last word of a line."""
    script = completion_script(shell)
    words = line.split(" ")
    if shell == "fish":
        ask = f"{script}\ncomplete -C '{line}'"
    else:
        array = " ".join(f"'{it}'" for it in words)
        ask = f"{script}\nCOMP_WORDS=({array}); COMP_CWORD={len(words) - 1}; _isthmus\n"
        ask += 'printf "%s\\n" "${COMPREPLY[@]}"'
        if shell == "zsh":
            ask = f"autoload -Uz compinit; compinit -D\n{ask}"
    done = subprocess.run([shell, "-c", ask], capture_output=True, text=True, check=True)
    return [it.partition("\t")[0] for it in done.stdout.split("\n") if it]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here: apt install {shell}")
    assert {*completions(shell, "isthmus ")} == {*COMMANDS}
    assert completions(shell, "isthmus inspect-m") == ["inspect-model"]
    assert completions(shell, "isthmus run --graph ad") == ["adopted"]
    assert "--json-schema" in completions(shell, "isthmus run --json")


def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert painted("x", Style.RED, sys.stderr) == "x"  # captured, so no terminal
    controller, terminal = os.openpty()
    with os.fdopen(controller, "rb"), os.fdopen(terminal, "w") as stream:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)
        assert painted("x", Style.RED, stream) == "\x1b[31mx\x1b[0m"
        monkeypatch.setenv("NO_COLOR", "1")
        assert painted("x", Style.RED, stream) == "x"


def test_long_work_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_module, "_EVERY_S", 0.01)
    said = ""

    def heard() -> bool:
        nonlocal said
        said += capfd.readouterr().err
        return "verify: 1 of 3 done" in said

    with progress_bar("verify", 3) as advance:
        advance()
        assert eventually(heard)


def test_verbose_shows_what_guests_log(tmp_path: Path) -> None:
    head = """(import "isthmus" "log" (func $log (param i32 i32 i32) (result i32)))
      (memory (export "memory") 1) (data (i32.const 0) "by the way")"""
    logs = guest(tmp_path / "logs.wasm", LOGS, head)
    command = ("run", logs, "--message", "x", "--device", "null")
    assert "by the way" not in isthmus(*command).stderr
    assert "by the way" in isthmus(*command, "-v").stderr
