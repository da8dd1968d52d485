"""Agents, callers and tools that do what they should not: nobody else may notice."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from isthmus import Actor, Capacity, Limits, Model, Runtime
from isthmus.errors import (
    ActorBusy,
    ActorClosed,
    DeadlineExceeded,
    DeviceFailed,
    GuestTrapped,
    ModelBusy,
    ModelClosed,
    Overloaded,
    RegionBusy,
    SnapshotError,
)
from isthmus.model.probes import exactness
from isthmus.model.probes.widths import Widths
from isthmus.units import WASM_PAGE
from tests.tiny_gguf import TinyLlama


def guest_of(body: str, pages: int = 1, extra: str = "", imports: str = "") -> bytes:
    function = f'(func (export "on_message") (param i32) (result i32) {body})'
    text = f'(module {imports} (memory (export "memory") {pages}) {extra} {function})'
    return bytes(wasmtime.wat2wasm(text))


QUICK = guest_of("(i32.const 0)")
LOOP = guest_of("(loop $l (br $l)) (i32.const 0)")
TRAP = guest_of("(unreachable)")
TOOL = guest_of(
    "(drop (call $c (i32.const 8) (i32.const 3) (i32.const 0) (i32.const 0))) (i32.const 0)",
    extra='(data (i32.const 8) "ask")',
    imports='(import "isthmus" "tool_call" (func $c (param i32 i32 i32 i32) (result i32)))',
)
GROWS = guest_of(
    "(if (i32.eq (memory.size) (i32.const 1)) (then (drop (memory.grow (i32.const 2)))))"
    "(i32.const 0)"
)


@pytest.fixture
def narrow() -> Iterator[Runtime]:
    """One message at a time."""
    with Runtime(device="null", threads=1, capacity=Capacity(running=1, waiting=4)) as runtime:
        yield runtime


@pytest.fixture
def scarce(tmp_path: Path) -> Iterator[Runtime]:
    """Four pages for all."""
    capacity = Capacity(memory_nbytes=4 * WASM_PAGE, folder=tmp_path)
    with Runtime(device="null", threads=1, capacity=capacity) as runtime:
        yield runtime


@pytest.fixture
def q8(tmp_path: Path) -> Path:
    return TinyLlama(with_tokenizer=True, quantisation="Q8_0").write(tmp_path / "q8.gguf")


def talking(runtime: Runtime, path: Path, n: int, **how: Any) -> list[Actor]:
    model = runtime.load_model(path, **how)
    args = {"n_ctx": 512}
    actors = [runtime.spawn("bench", models={"default": model}, args=args) for _ in range(n)]
    for actor in actors:
        actor.send("prefill 10")
    return actors


# ---------------------------------------------------------------------------------- steps


def test_a_probe_that_fails_leaves_each_agent_alone(
    runtime: Runtime, q8: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_: object) -> Widths:
        raise DeviceFailed("no memory")

    alone = [actor.send("sequence 30").text for actor in talking(runtime, q8, 2)]
    monkeypatch.setattr(exactness, "widths_of", failing)
    actors = talking(runtime, q8, 2)
    together = ["".join(it) for it in [actor.stream("sequence 30") for actor in actors]]
    assert together == alone
    assert Model.of(actors[0].sessions[0]).widths == Widths()
    assert any("no memory" in it.getMessage() for it in caplog.records)


def test_a_model_does_not_close_under_its_sessions(runtime: Runtime, q8: Path) -> None:
    [actor] = talking(runtime, q8, 1)
    model = Model.of(actor.sessions[0])
    with pytest.raises(ModelBusy, match="1 sessions"):
        model.close()
    assert actor.send("sequence 5").text
    actor.close()
    model.close()
    with pytest.raises(Exception, match=r"EBADF|closed"):
        runtime.spawn("bench", models={"default": model}).send("prefill 10")
    assert issubclass(ModelClosed, Exception)


def test_a_long_prompt_costs_nobody_his_tokens(runtime: Runtime, tmp_path: Path) -> None:
    """Where steps run one by one, decoding is shared evenly whatever was prefilled before."""
    path = TinyLlama(with_tokenizer=True, quantisation="F16").write(tmp_path / "f16.gguf")
    model = runtime.load_model(path)
    few, many = (
        runtime.spawn("bench", models={"default": model}, args={"n_ctx": 1024}) for _ in range(2)
    )
    few.send("prefill 5")
    many.send("prefill 600")
    streams = [few.stream("sequence 300"), many.stream("sequence 300")]
    while many.sessions[0].n_tokens < 700:
        time.sleep(0.001)
    assert few.sessions[0].n_tokens < 5 + 250  # it is not at its end when the other has 100
    for stream in streams:
        stream.close()


# ---------------------------------------------------------------------------------- closing


def test_closing_while_somebody_looks_is_tried_again(null_runtime: Runtime) -> None:
    actor = null_runtime.spawn(QUICK)
    view = actor.region.view(0, 16)
    region = actor.region
    with pytest.raises(RegionBusy):
        actor.close()
    assert actor.state == "closed"
    with pytest.raises(ActorClosed):
        actor.send("x")
    view.release()
    actor.close()
    assert region.closed


@pytest.mark.parametrize("policy", ["undo", "keep"])
def test_the_first_error_is_the_one_that_is_heard(null_runtime: Runtime, policy: str) -> None:
    actor = null_runtime.spawn(TRAP, limits=Limits(on_failure=policy))
    with actor.region.view(0, 16), pytest.raises(GuestTrapped):
        actor.send("x")
    assert actor.state == "closed"
    with pytest.raises(ActorClosed, match="unreachable"):
        actor.send("x")
    actor.close()


def test_an_actor_that_is_undone_keeps_its_memory(scarce: Runtime) -> None:
    trapping = guest_of("(unreachable)", pages=3)
    actor = scarce.spawn(trapping, limits=Limits(on_failure="undo"))
    going_on = True

    def want_memory() -> None:
        while going_on:
            try:
                with scarce.spawn(guest_of("(loop $l (br $l)) (i32.const 0)", pages=2)) as other:
                    other.send("x", deadline_s=0.002)
            except (Overloaded, DeadlineExceeded, ActorClosed):
                pass

    thread = threading.Thread(target=want_memory)
    thread.start()
    try:
        for _ in range(200):
            with pytest.raises((GuestTrapped, Overloaded, ActorBusy)):
                actor.send("x")
            assert actor.state != "closed"
    finally:
        going_on = False
        thread.join()


def test_a_tool_cannot_close_the_actor_that_calls_it(null_runtime: Runtime) -> None:
    said: list[str] = []

    def ask(_: bytes) -> bytes:
        try:
            actors[0].close()
        except ActorBusy as error:
            said.append(str(error))
        return b""

    actors = [null_runtime.spawn(TOOL, tools={"ask": ask})]
    actors[0].send("x", deadline_s=5)
    assert "let it return first" in said[0]


# ---------------------------------------------------------------------------------- waiting


def test_a_tool_may_ask_actors_from_other_threads(narrow: Runtime) -> None:
    others = [narrow.spawn(QUICK), narrow.spawn(QUICK)]
    with ThreadPoolExecutor(2) as pool:

        def ask(_: bytes) -> bytes:
            list(pool.map(lambda other: other.send("x"), others))
            return b"yes"

        actor = narrow.spawn(TOOL, tools={"ask": ask})
        for _ in range(5):
            actor.send("x", deadline_s=5)
    assert [other.n_messages for other in others] == [5, 5]
    assert narrow._platform.loop.places.n_running == 0


def test_a_dropped_stream_does_not_keep_its_place(narrow: Runtime) -> None:
    looping, quick = narrow.spawn(LOOP), narrow.spawn(QUICK)
    stream = looping.stream("x")
    while looping.state != "running":
        time.sleep(0.001)
    del stream
    quick.send("x", deadline_s=20)


def test_a_thread_that_cannot_be_started_costs_nobody_anything(
    narrow: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a tool's, nor that of a guest which computes for long."""
    asking, looping = narrow.spawn(TOOL, tools={"ask": bytes}), narrow.spawn(LOOP)
    quick = narrow.spawn(QUICK)
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name in ("isthmus tool", "isthmus slow guest"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        asking.send("x", deadline_s=5)  # its guest gets EIO
        with pytest.raises(Overloaded, match="can't start new thread"):
            looping.send("x", deadline_s=5)
        quick.send("x", deadline_s=5)
    assert 'refused_total{why="threads"} 2.0' in narrow.metrics()


def test_what_is_refused_is_counted_and_explained(narrow: Runtime, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    capacity = Capacity(running=1, waiting=0, memory_nbytes=2 * WASM_PAGE, folder=file / "no")
    with Runtime(device="null", threads=1, capacity=capacity) as runtime:
        quick, looping = runtime.spawn(QUICK), runtime.spawn(LOOP)
        stream = looping.stream("x")
        with pytest.raises(Overloaded, match=r"Capacity\.running"):
            quick.send("x")
        with pytest.raises(Overloaded, match="idle ones cannot be evicted: actors cannot be"):
            runtime.spawn(QUICK)
        metrics = runtime.metrics()
        assert 'isthmus_refused_total{why="waiting"} 1.0' in metrics
        assert 'isthmus_refused_total{why="memory"} 1.0' in metrics
        looping.cancel()
        with pytest.raises(Exception, match="cancelled"):
            list(stream)


# ---------------------------------------------------------------------------------- memory


def test_a_guest_that_gives_up_for_want_of_all_actors_memory_says_so(
    runtime: Runtime, q8: Path
) -> None:
    with Runtime(device="cpu", threads=1, capacity=Capacity(memory_nbytes=512 << 10)) as small:
        model = small.load_model(q8)
        actor = small.spawn("bench", models={"default": model}, args={"n_ctx": 1024})
        with pytest.raises(Overloaded, match=r"Capacity\.memory_nbytes"):
            actor.send("prefill 10")


def test_whoever_cannot_come_back_is_told_why(scarce: Runtime) -> None:
    actor = scarce.spawn(GROWS)
    actor.send("x")
    actor.evict()
    other = scarce.spawn(guest_of("(loop $l (br $l)) (i32.const 0)", pages=3))
    stream = other.stream("x")
    for use in (lambda: actor.send("x"), actor.fork, lambda: actor.region):
        with pytest.raises(Overloaded, match="memory are not left"):
            use()
    other.cancel()
    with pytest.raises(Exception, match="cancelled"):
        list(stream)
    actor.send("x")


def test_a_fork_has_what_the_host_wrote(null_runtime: Runtime) -> None:
    actor = null_runtime.spawn(QUICK)
    actor.fork()
    with actor.pinned() as body, body.region.view(8, 1) as view:
        view.memory[0] = 77
    [fork] = actor.fork()
    with fork.region.view(8, 1) as view:
        assert view.memory[0] == 77


def test_a_model_file_that_is_gone_is_named(runtime: Runtime, q8: Path, tmp_path: Path) -> None:
    [actor] = talking(runtime, q8, 1)
    q8.unlink()
    with pytest.raises(SnapshotError, match=r"cannot read .*q8\.gguf"):
        actor.snapshot(tmp_path / "a.safetensors")
    actor.evict()  # which needs no file of the model's
    assert actor.send("sequence 3").text


def test_log_records_are_output(null_runtime: Runtime) -> None:
    logs = guest_of(
        "(loop $l (br_if $l (i32.eqz (call $g (i32.const 1) (i32.const 0) (i32.const 0)))))"
        "(i32.const 9)",
        imports='(import "isthmus" "log" (func $g (param i32 i32 i32) (result i32)))',
    )
    records = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[assignment, method-assign]
    logger = logging.getLogger("isthmus.guest")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        actor = null_runtime.spawn(logs, limits=Limits(output_nbytes=320))
        with pytest.raises(Exception, match="gave up"):
            actor.send("x", deadline_s=5)
    finally:
        logger.removeHandler(handler)
    assert len(records) == 10
    assert actor.usage.limits_reached["output_nbytes"] == 1


# ---------------------------------------------------------------------------------- processes


EVICTS = """
import os, signal, sys
from pathlib import Path
from isthmus import Capacity, Runtime
runtime = Runtime(device="null", threads=1, capacity=Capacity(folder=sys.argv[1]))
actor = runtime.spawn(bytes.fromhex(sys.argv[2]))
actor.evict()
if sys.argv[3] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[3] == "fork":
    if (child := os.fork()) == 0:
        runtime.close()
        os._exit(0)
    os.waitpid(child, 0)
    actor.send("x")
"""


@pytest.mark.parametrize("how", ["leave", "fork"])
def test_evicted_files_go_with_their_process(tmp_path: Path, how: str) -> None:
    command = [sys.executable, "-c", EVICTS, str(tmp_path), QUICK.hex(), how]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0
    assert list(tmp_path.glob("*")) == []


def test_files_of_a_killed_process_are_swept_by_the_next(tmp_path: Path) -> None:
    command = [sys.executable, "-c", EVICTS, str(tmp_path), QUICK.hex(), "kill"]
    for _ in range(2):
        assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("*/*.memory"))) == 1
    with Runtime(device="null", threads=1, capacity=Capacity(folder=tmp_path)) as runtime:
        actor = runtime.spawn(QUICK)
        actor.evict()
        assert len(list(tmp_path.glob("*/*.memory"))) == 1
        actor.send("x")
    assert list(tmp_path.glob("*")) == []


def test_ctrl_c_ends_a_guest_that_loops_while_it_begins() -> None:
    text = """(module (memory (export "memory") 1)
      (func (export "_initialize") (loop $l (br $l)))
      (func (export "on_message") (param i32) (result i32) (i32.const 0)))"""
    script = f"""
import os, signal, threading
from isthmus import Runtime
with Runtime(device="null", threads=1) as runtime:
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    try:
        runtime.spawn({bytes(wasmtime.wat2wasm(text))!r})
    except KeyboardInterrupt:
        os._exit(7)
"""
    assert os.name == "posix"
    done = subprocess.run([sys.executable, "-c", script], timeout=60, check=False)
    assert done.returncode == 7
