"""One guest over many inputs: the same outputs however they are placed, and jobs that go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import wasmtime

import isthmus
from isthmus import Job, Mapper, Runtime
from isthmus.errors import DeviceFailed, Overloaded, SettingsError
from isthmus.mapping.lines import Input, line_of, open_results, read_inputs, resume

TEXTS = [f"Tell me about {n}." for n in range(9)]
TRAPS = bytes(
    wasmtime.wat2wasm("""(module (import "isthmus" "reply" (func $r (param i32 i32) (result i32)))
  (memory (export "memory") 1) (data (i32.const 8) "good")
  (func (export "on_message") (param i32) (result i32)
    (if (i32.gt_u (local.get 0) (i32.const 3)) (then unreachable))
    (call $r (i32.const 8) (i32.const 4))))""")
)
"""Answers good to texts of three bytes, and traps on longer ones."""


@pytest.fixture
def job(tiny: Path) -> Job:
    return Job("chat", models={"default": str(tiny)}, args={"max_tokens": 6}, seed=7)


def test_outputs_do_not_depend_on_what_is_computed_beside(runtime: Runtime, job: Job) -> None:
    alone = list(isthmus.map(runtime, job, TEXTS, parallel=1))
    assert [it.index for it in alone] == list(range(9))
    assert len({it.output for it in alone}) > 1
    assert list(isthmus.map(runtime, job, TEXTS, parallel=5)) == alone
    assert list(Mapper(runtime, job).map(TEXTS[4:], first=4)) == alone[4:]
    other = Job(job.guest, job.models, job.args, seed=8)
    assert [it.output for it in isthmus.map(runtime, other, TEXTS)] != [it.output for it in alone]
    assert Mapper(runtime, other).key != Mapper(runtime, job).key == Mapper(runtime, job).key
    assert runtime.actors == []


def test_inputs_that_fail_do_not_stop_the_others(null_runtime: Runtime) -> None:
    found = list(isthmus.map(null_runtime, Job(TRAPS), ["one", "longer", "two"]))
    assert [it.output for it in found] == ["good", None, "good"]
    assert (found[1].error or "").startswith("GuestTrapped: ")
    with pytest.raises(SettingsError, match="an option for a guest"):
        isthmus.map(null_runtime, Job(TRAPS, args=["x"]), ["one"])


def test_what_is_no_fault_of_an_input_is_tried_again(
    null_runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapper = Mapper(null_runtime, Job(TRAPS))
    failures: list[Exception] = [Overloaded("full"), DeviceFailed("lost")]
    spawn = Runtime.spawn

    def spawned(*args: object, **how: object) -> object:
        if failures:
            raise failures.pop()
        return spawn(*args, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(Runtime, "spawn", spawned)
    assert [it.output for it in mapper.map(["one"], retries=2)] == ["good"]
    failures = [DeviceFailed("lost"), DeviceFailed("lost")]
    with pytest.raises(DeviceFailed):
        list(mapper.map(["one"], retries=1))


def test_whoever_leaves_has_the_rest_cut_off(null_runtime: Runtime) -> None:
    read: list[int] = []

    def texts() -> Iterator[str]:
        for n in range(10**6):
            read.append(n)
            yield "one"

    results = isthmus.map(null_runtime, Job(TRAPS), texts(), parallel=2)
    assert next(results).output == "good"
    results.close()  # type: ignore[attr-defined]
    assert len(read) < 100
    assert null_runtime.actors == []


def test_inputs_are_strings_or_objects() -> None:
    lines = [b'"a"\n', b'{"input": "b", "id": 3}\n', b'{"input": "c", "id": "x"}']
    assert list(read_inputs(lines, "f")) == [Input("a"), Input("b", 3), Input("c", "x")]
    for bad in (
        b"\n",
        b"{}",
        b"3",
        b'{"input": 1}',
        b'{"input": "a", "x": 1}',
        b"\xff",
        b"[" * 9999,
    ):
        with pytest.raises(SettingsError, match="f, line 2 is no input: "):
            list(read_inputs([b'"a"\n', bad], "f"))


def test_results_go_on_where_they_ended(tmp_path: Path) -> None:
    inputs = [Input("a"), Input("b", 1), Input("c")]
    lines = [line_of(isthmus.Mapped(n, "x"), it, "job") for n, it in enumerate(inputs)]
    path = tmp_path / "out"

    def resumed(data: bytes, job: str = "job", given: list[Input] = inputs) -> tuple[int, bytes]:
        path.write_bytes(data)
        with open_results(path) as file:
            left = iter(given)
            n_done, _ = resume(file, left, job)
            assert [*left] == given[n_done:]
        return n_done, path.read_bytes()

    whole = b"".join(lines)
    for length in range(len(whole) + 1):
        n_whole = whole[:length].count(b"\n")
        assert resumed(whole[:length]) == (n_whole, b"".join(lines[:n_whole]))
    for data, job, given in (
        (whole, "other", inputs),
        (whole, "job", inputs[:2]),
        (whole, "job", [inputs[0], inputs[2], inputs[1]]),
        (lines[1], "job", inputs),
        (b"nonsense\n", "job", inputs),
    ):
        with pytest.raises(SettingsError, match="give another --output"):
            resumed(data, job, given)
        assert path.read_bytes() == data
    with (
        open_results(path),
        pytest.raises(SettingsError, match="another isthmus map writes"),
        open_results(path),
    ):
        raise AssertionError("unreachable")


# ---------------------------------------------------------------------- the command


@pytest.fixture
def command(tiny: Path, tmp_path: Path) -> Callable[..., list[str]]:
    inputs = tmp_path / "in.jsonl"
    inputs.write_text("".join(json.dumps(it) + "\n" for it in TEXTS * 4))

    def command(*more: str) -> list[str]:
        how = ["--inputs", str(inputs), "--model", str(tiny), "--arg", "max_tokens=6"]
        return [sys.executable, "-m", "isthmus", "map", "chat", *how, "--seed", "7", *more]

    return command


@pytest.mark.slow
def test_a_job_that_is_killed_goes_on(command: Callable[..., list[str]], tmp_path: Path) -> None:
    calm = subprocess.run(command("--parallel", "1"), capture_output=True, check=True)
    assert len(calm.stdout.splitlines()) == 4 * len(TEXTS)
    out = tmp_path / "out.jsonl"
    killed = subprocess.Popen(command("--output", str(out)), stderr=subprocess.DEVNULL)
    while not out.exists() or not out.read_bytes():
        assert killed.poll() is None
        time.sleep(0.002)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    again = subprocess.run(command("--output", str(out)), capture_output=True, check=True)
    assert b"of which were there" in again.stderr
    assert out.read_bytes() == calm.stdout
    other = subprocess.run(
        command("--output", str(out), "--seed", "8"), check=False, capture_output=True
    )
    assert other.returncode == 2
    assert b"is of another job" in other.stderr
    assert out.read_bytes() == calm.stdout


def test_bad_lines_are_found_before_anything_is_computed(
    command: Callable[..., list[str]], tmp_path: Path
) -> None:
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write("not JSON\n")
    done = subprocess.run(command(), check=False, capture_output=True)
    assert done.returncode == 2
    assert b"in.jsonl, line 37 is no input: " in done.stderr
    assert done.stdout == b""
