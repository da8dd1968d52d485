"""Commands: a message is standard input, the answer standard output, each time anew."""

from __future__ import annotations

import io
import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from isthmus import Limits
from isthmus.actor.stdio import MAX_EMPTY_READS
from isthmus.errors import (
    Cancelled,
    DeadlineExceeded,
    GuestExited,
    GuestInvalid,
    GuestTrapped,
    InputExhausted,
    LimitExceeded,
    SettingsError,
)
from isthmus.runtime import Runtime
from tests.commands.guests import CAT, READS_ON, YES, command

COUNTS = f"""(i32.store (i32.const 512) (i32.add (i32.load (i32.const 512)) (i32.const 1)))
  (if (i32.ne (i32.load (i32.const 512)) (i32.const 1)) (then unreachable)) {CAT}"""
"""As CAT; traps if its memory knows of an earlier message."""
LOOPS = "(loop $again (br $again))"


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with Runtime(device="null", threads=1) as runtime:
        yield runtime


def test_each_message_begins_anew(runtime: Runtime) -> None:
    with runtime.spawn(command(COUNTS)) as actor:
        assert actor.usage.memory_nbytes == 0
        for text in ("hello", "", "x" * 10_000):
            assert actor.send(text).text == text
        assert actor.n_messages == 3
        assert actor.usage.memory_nbytes == 0
        assert actor.usage.output_nbytes == 10_005
        assert runtime.engine.memory_creator.n_memories == 0


def test_bytes_that_are_no_text(runtime: Runtime) -> None:
    data = bytes(range(256)) + "größe".encode()[:-2]
    with runtime.spawn(command(CAT)) as actor:
        assert actor.send(data).data == data
        told = "".join(actor.stream(data, errors="surrogateescape"))
        assert told.encode(errors="surrogateescape") == data
        assert "�" in "".join(actor.stream(data))
        with pytest.raises(LookupError):
            actor.stream(data, errors="no such way")


def test_exit_status(runtime: Runtime) -> None:
    body = f"{CAT} (call $exit (i32.const {{}})) unreachable"
    with runtime.spawn(command(body.format(0))) as actor:
        assert actor.send("fine").text == "fine"
    with runtime.spawn(command(body.format(3))) as actor:
        for _ in range(2):
            stream = actor.stream("told")
            assert next(stream) == "told"
            with pytest.raises(GuestExited, match="status 3") as caught:
                next(stream)
            assert (caught.value.status, caught.value.reply.text) == (3, "told")
            assert actor.state == "idle"


@pytest.mark.parametrize("on_failure", ["keep", "undo", "close"])
def test_a_failure_leaves_nothing_behind(runtime: Runtime, on_failure: str) -> None:
    body = f"{CAT} (if (i32.eq (i32.load8_u (i32.const 1024)) (i32.const 33)) (then unreachable))"
    limits = Limits(on_failure=on_failure)
    with runtime.spawn(command(body), limits=limits) as actor:
        assert actor.send("good").text == "good"
        with pytest.raises(GuestTrapped, match="unreachable"):
            actor.send("!")
        assert actor.state == ("closed" if on_failure == "close" else "idle")
        if on_failure != "close":
            assert actor.send("good").text == "good"


def test_a_start_function_is_part_of_each_message(runtime: Runtime) -> None:
    more = "(func $begin (i32.store (i32.const 1024) (i32.const 42))) (start $begin)"
    body = "(call $puts (i32.const 1) (i32.const 1024) (i32.const 1))"
    with runtime.spawn(command(body, more)) as actor:
        assert [actor.send("").text for _ in range(2)] == ["*", "*"]


def test_clock_and_random_numbers_go_on(runtime: Runtime) -> None:
    body = """(drop (call $random (i32.const 1024) (i32.const 8)))
      (drop (call $clock (i32.const 0) (i64.const 1) (i32.const 1032)))
      (call $puts (i32.const 1) (i32.const 1024) (i32.const 16))"""

    def said() -> list[bytes]:
        with runtime.spawn(command(body), seed=7, clock_ns=10) as actor:
            return [actor.send("").data for _ in range(3)]

    first = said()
    assert len({it[:8] for it in first}) == 3
    times = [int.from_bytes(it[8:], "little") for it in first]
    assert times == sorted(times)
    assert len({*times}) == 3
    assert said() == first


def test_standard_error_is_logged_line_by_line(
    runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    more = r'(data (i32.const 2048) "one\ntw") (data (i32.const 2056) "o\nlast")'
    body = """(call $puts (i32.const 2) (i32.const 2048) (i32.const 6))
      (call $puts (i32.const 2) (i32.const 2056) (i32.const 6))"""
    with runtime.spawn(command(body, more), label="ada") as actor:
        assert actor.send("").text == ""
    assert [it.getMessage() for it in caplog.records] == ["one", "two", "last"]
    assert {it.levelno for it in caplog.records} == {logging.WARNING}
    assert caplog.records[0].__dict__["agent"] == "ada"


def test_a_line_that_never_ends(runtime: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    body = f"""(loop $again
      (call $puts (i32.const 2) (i32.const 2048) (i32.const 60000))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if $again (i32.lt_u (local.get $n) (i32.const 8)))) {CAT}"""
    with runtime.spawn(command(body)) as actor:
        actor.send("x")
    assert len(caplog.records) == 4


def test_reading_on_at_the_end(runtime: Runtime) -> None:
    with runtime.spawn(command(READS_ON)) as actor:
        for message in ("x", io.BytesIO(b"x" * 5000)):
            with pytest.raises(InputExhausted, match="give the prompt as an argument"):
                actor.send(message)
        assert actor.counters.host_calls == 2 * (MAX_EMPTY_READS + 1) + 1 + 2
        assert actor.state == "idle"


def test_a_file_is_read_as_it_comes(runtime: Runtime, tmp_path: Path) -> None:
    with runtime.spawn(command(CAT)) as actor:
        path = tmp_path / "file"
        path.write_bytes(b"z" * 100_000)
        with path.open("rb") as file:
            assert actor.send(file).data == path.read_bytes()
        read, write = os.pipe()
        with os.fdopen(read, "rb") as file, os.fdopen(write, "wb", buffering=0) as pipe:
            stream = actor.stream(file)
            for line in (b"one\n", b"two\n"):
                pipe.write(line)
                assert next(stream) == line.decode()
            pipe.close()
            with pytest.raises(StopIteration):
                next(stream)


def test_only_as_much_is_read_as_the_guest_asks_for(runtime: Runtime, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a" * 4096 + b"rest")
    with runtime.spawn(command("(drop (call $gets))")) as actor, path.open("rb") as file:
        actor.send(file)
        assert os.read(file.fileno(), 10) == b"rest"


def test_what_cannot_be_read(runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("x")
    with runtime.spawn(command(CAT)) as actor:
        with (tmp_path / "text").open() as file, pytest.raises(SettingsError, match="for bytes"):
            actor.send(file)  # type: ignore[arg-type]
        with pytest.raises(SettingsError, match="not int"):
            actor.send(5)  # type: ignore[arg-type]
        with _Folder(tmp_path) as folder, pytest.raises(GuestTrapped):
            actor.send(folder)
    with runtime.spawn("bench") as actor, pytest.raises(SettingsError, match="only a command"):
        actor.send(io.BytesIO(b"x"))


class _Folder(io.RawIOBase):
    """A file that cannot be read."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


@pytest.mark.parametrize("body", [CAT, LOOPS], ids=["reads", "loops"])
def test_deadline_and_cancellation(runtime: Runtime, body: str) -> None:
    read, write = os.pipe()
    with (
        os.fdopen(read, "rb") as file,
        os.fdopen(write, "wb"),
        runtime.spawn(command(body)) as actor,
    ):
        with pytest.raises(DeadlineExceeded):
            actor.send(file, deadline_s=0.2)
        assert actor.state == "idle"
        stream = actor.stream(file)
        actor.cancel()
        with pytest.raises(Cancelled):
            list(stream)
        stream = actor.stream(file)
        stream.close()
        assert stream.ended
        assert actor.state == "idle"


def test_an_endless_answer_is_cut_off_when_nobody_listens(runtime: Runtime) -> None:
    with runtime.spawn(command(YES)) as actor:
        with actor.stream("") as stream:
            assert next(stream).startswith("y\n")
        assert stream.ended
        assert actor.state == "idle"


def test_limits_hold(runtime: Runtime) -> None:
    with runtime.spawn(command(YES), limits=Limits(output_nbytes=100)) as actor:
        with pytest.raises(GuestTrapped):
            actor.send("")
        assert actor.usage.limits_reached == {"output_nbytes": 1}
    with runtime.spawn(command(LOOPS), limits=Limits(fuel=10_000)) as actor:
        for _ in range(2):
            with pytest.raises(LimitExceeded, match="fuel"):
                actor.send("")
    with runtime.spawn(command(CAT), limits=Limits(memory_nbytes=65_536)) as actor:
        for _ in range(2):
            with pytest.raises(GuestInvalid, match="memory"):
                actor.send("")
        assert actor.state == "idle"


def test_what_a_command_cannot_do(runtime: Runtime) -> None:
    with runtime.spawn(command(CAT)) as actor:
        for use in (
            lambda: actor.region,
            lambda: actor.sessions,
            lambda: actor.pinned().__enter__(),
        ):
            with pytest.raises(SettingsError, match="is a command"):
                use()
        assert actor.evict() == 0
        assert actor.send("still").text == "still"


def test_arguments_and_variables(runtime: Runtime) -> None:
    wasm = command(CAT)
    for wrong, words in (
        ({"argv": "ab"}, "a list of texts"),
        ({"argv": [5]}, "a list of texts"),
        ({"argv": ["a\0b"]}, "zero byte"),
        ({"argv": ["\ud800"]}, "lone surrogates"),
        ({"environ": {"A": 5}}, "texts to texts"),
        ({"environ": {"": "x"}}, "empty"),
        ({"environ": {"A=B": "x"}}, "has = in it"),
        ({"environ": {"A": "\0"}}, "zero byte"),
        ({"args": {"a": 1}}, "takes no options such as a=1"),
    ):
        with pytest.raises(SettingsError, match=words):
            runtime.spawn(wasm, **wrong)  # type: ignore[arg-type]
    for given in ({"argv": ["x"]}, {"environ": {"A": "b"}}):
        with pytest.raises(SettingsError, match="is no command"):
            runtime.spawn("bench", **given)  # type: ignore[arg-type]


def test_sixty_four_at_once(runtime: Runtime) -> None:
    actors = [runtime.spawn(command(COUNTS)) for _ in range(64)]
    texts = [f"{number} " * 500 for number in range(64)]
    with ThreadPoolExecutor(64) as pool:
        said = list(pool.map(lambda it: it[0].send(it[1]).text, zip(actors, texts, strict=True)))
    assert said == texts
    for actor in actors:
        actor.close()
    assert threading.active_count() < 100


def test_a_runtime_closes_while_a_command_waits_for_input() -> None:
    read, write = os.pipe()
    with os.fdopen(read, "rb") as file, os.fdopen(write, "wb"):
        with Runtime(device="null", threads=1) as runtime:
            actor = runtime.spawn(command(CAT))
            stream = actor.stream(file)
        with pytest.raises(Cancelled):
            list(stream)
        assert actor.state == "closed"
