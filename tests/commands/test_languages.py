"""What the runtimes of C and Rust ask of WASI, and a chat in C by wasi-nn."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from isthmus.errors import GuestExited, GuestTrapped
from isthmus.model import Model
from isthmus.runtime import Runtime
from isthmus.wasm import Guest
from tests.commands.guests import HERE, compile_c, compile_rust, rustc
from tests.tiny_gguf import TinyLlama

pytestmark = pytest.mark.slow
SOURCES = HERE.parents[1] / "src"
needs_zig = pytest.mark.skipif(
    not importlib.util.find_spec("ziglang"), reason="ziglang is not installed"
)


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with Runtime(device="cpu", threads=1) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def model(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    return runtime.load_model(TinyLlama(with_tokenizer=True, quantisation="Q8_0").write(path))


@pytest.fixture(scope="module")
def rust(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Guest]:
    """Compiles a Rust program, once."""
    if rustc() is None:
        pytest.skip(
            "no Rust compiler with a standard library for wasm32-wasi: Debian has one in rustc and "
            "libstd-rust-dev-wasm32"
        )
    folder = tmp_path_factory.mktemp("rust")

    def guest(name: str) -> Guest:
        path = folder / f"{name}.wasm"
        if not path.exists():
            compile_rust(HERE / f"{name}.rs", path)
        return runtime.load_guest(path)

    return guest


@pytest.fixture(scope="module")
def chat(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    path = tmp_path_factory.mktemp("c") / "chat.wasm"
    compile_c(HERE / "chat.c", path)
    return runtime.load_guest(path)


def test_rusts_runtime(
    runtime: Runtime, rust: Callable[[str], Guest], caplog: pytest.LogCaptureFixture
) -> None:
    clock_ns = 1_600_000_000 * 10**9
    given = {"argv": ["a", "größe"], "environ": {"NAME": "Ada"}}
    with runtime.spawn(rust("runtime"), clock_ns=clock_ns, **given) as actor:  # type: ignore[arg-type]
        assert actor.send("line\nrest\nof it").text.splitlines() == [
            'runtime ["a", "größe"] Ada',
            "slept 3600 s",
            "year 2020",
            "first 1 rest",
            "of ittrue",
        ]
    assert [it.getMessage() for it in caplog.records] == ["10 bytes"]


def test_how_rust_ends(
    runtime: Runtime, rust: Callable[[str], Guest], caplog: pytest.LogCaptureFixture
) -> None:
    with (
        runtime.spawn(rust("runtime"), argv=["exit"]) as actor,
        pytest.raises(GuestExited) as caught,
    ):
        actor.send("")
    assert caught.value.status == 9
    with runtime.spawn(rust("runtime"), argv=["panic"]) as actor, pytest.raises(GuestTrapped):
        actor.send("")
    assert "on purpose" in caplog.text


def test_a_rust_guest_of_wasi_nn(
    runtime: Runtime,
    rust: Callable[[str], Guest],
    model: Model,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def say(seed: int, **environ: str) -> tuple[str, str, dict[str, Any]]:
        given: Any = {"models": {"default": model}, "argv": ["default", "the isthmus"]}
        with runtime.spawn(rust("stream"), environ=environ, seed=seed, **given) as actor:
            whole, streamed, told, _ = actor.send("").text.split("\n")
        return whole, streamed, json.loads(told)

    whole, streamed, told = say(1, temp="0")
    assert whole == streamed
    assert told["output_tokens"] == 8
    assert say(2) == say(2) != say(3)
    assert say(1, n_predict="2", temp="0")[2]["output_tokens"] == 2
    assert not caplog.records, "nothing on standard error"


@needs_zig
def test_sixty_four_chats_at_once_are_batched_and_equal_one_alone(
    runtime: Runtime, chat: Guest, model: Model
) -> None:
    def say(number: int) -> str:
        text = f"the isthmus {number % 8}"
        given = {"models": {"default": model}, "argv": ["default", text]}
        with runtime.spawn(chat, seed=number % 8, **given) as actor:  # type: ignore[arg-type]
            said = actor.send("").text
            assert actor.counters.bytes_copied == 0
            return said

    alone = [say(number) for number in range(8)]
    n_alone = runtime.counters().submissions
    with ThreadPoolExecutor(64) as pool:
        together = list(pool.map(say, range(64)))
    n_together = runtime.counters().submissions - n_alone
    assert together == [alone[number % 8] for number in range(64)]
    assert len({*alone}) == 8
    assert n_together < 4 * n_alone, "of eight times as many chats"


@needs_zig
def test_a_chat_on_standard_input(runtime: Runtime, chat: Guest, model: Model) -> None:
    given = {"models": {"default": model}, "environ": {"n_predict": "4", "ctx_size": "256"}}
    with runtime.spawn(chat, argv=["default"], **given) as actor:  # type: ignore[arg-type]
        said = actor.send("the sea\n\nthe land\n").text
        assert said.count("[You]:") == 4
        assert said.count("[Bot]:") == 2
        assert actor.usage.tokens_out >= 3
    with runtime.spawn(chat, argv=["nobody", "x"], **given) as actor, pytest.raises(GuestExited):  # type: ignore[arg-type]
        actor.send("")


@needs_zig
def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    page = (HERE.parents[1] / "docs" / "commands.md").read_text()
    shell, *_ = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    shell = shell.replace("python -m", f"{sys.executable} -m")
    shell = shell.replace("isthmus run", f"{sys.executable} -m isthmus run")
    words, env = ["sh", "-e", "-c", shell], {**os.environ, "PYTHONPATH": str(SOURCES)}
    done = subprocess.run(
        words, cwd=tmp_path, env=env, capture_output=True, timeout=300, check=False
    )
    assert done.stdout == b"HELLO!\n", done.stderr
    (example, *_) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    code = example.replace('"shout.wasm"', repr(str(tmp_path / "shout.wasm")))
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        exec(compile(code, "commands.md", "exec"), {})
    assert told.getvalue() == "HELLO!\n\nAGAIN!\n\n"
