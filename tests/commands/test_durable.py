"""What a command keeps between two messages: saved, forked, and undone with its tools."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import wasmtime

from isthmus import Limits
from isthmus.errors import GuestExited, GuestTrapped, SnapshotInvalid
from isthmus.runtime import Runtime
from isthmus.snapshot import open_snapshot
from isthmus.tools import function_tool
from tests.commands.guests import CAT, command

_SIZES = """
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $env (param i32 i32) (result i32)))"""
_CHANCE = """(drop (call $random (i32.const 1024) (i32.const 8)))
  (drop (call $clock (i32.const 0) (i64.const 1) (i32.const 1032)))"""
TELLS = command(
    f"""{_CHANCE}
  (drop (call $args (i32.const 1040) (i32.const 1048)))
  (drop (call $env (i32.const 1048) (i32.const 1044)))
  (call $puts (i32.const 1) (i32.const 1024) (i32.const 24))""",
    imports=_SIZES,
)
"""Says 8 random bytes, the time (i64), the number of its arguments and the bytes of its variables
(i32)."""
PAYS = command(
    f"""(local.set $n (call $gets))
  (drop (call $call (i32.const 2048) (i32.const 3) (i32.const 0) (i32.const 0)))
  (if (i32.eq (i32.load8_u (i32.const 1024)) (i32.const 33)) (then unreachable))
  {_CHANCE} (call $puts (i32.const 1) (i32.const 1024) (i32.const 16))
  (call $exit (i32.const 1))""",
    '(data (i32.const 2048) "pay")',
    '(import "isthmus" "tool_call" (func $call (param i32 i32 i32 i32) (result i32)))',
)
"""Calls the tool `pay`; traps if it is told `!`, and otherwise exits with 1."""


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with Runtime(device="null", threads=1) as runtime:
        yield runtime


def test_saved_and_forked(runtime: Runtime, tmp_path: Path) -> None:
    folder, limits = tmp_path / "store", Limits(fuel=10**6)
    folder.mkdir()
    how = {"argv": ["--all", ""], "environ": {"A": "b"}, "limits": limits, "seed": 7}
    with runtime.spawn(TELLS, clock_ns=10, **how) as actor:  # type: ignore[arg-type]
        first = actor.send("").data
        file = actor.snapshot(tmp_path / "a.safetensors")
        stored = actor.snapshot(folder, name="a")
        [fork] = actor.fork()
        second = actor.send("").data
    assert second[:16] != first[:16]
    assert second[16:] == first[16:] == b"\3\0\0\0\4\0\0\0"
    assert (file.n_chunks, stored.n_chunks) == (0, 0)
    with fork, runtime.restore(file) as one, runtime.restore(stored) as other:
        for each in (fork, one, other):
            assert each.send("").data == second
            assert (each.n_messages, each.limits.fuel) == (2, 10**6)
        assert one.restored is not None
        assert (one.args, one.restored.level) == (("A=b",), "exact")
    with runtime.restore(file, args={"A": "longer"}) as changed:
        assert changed.send("").data == second[:20] + b"\x09\0\0\0"


def test_a_snapshot_of_another_kind_of_guest(runtime: Runtime, tmp_path: Path) -> None:
    wat = """(module (memory (export "memory") 1)
      (func (export "on_message") (param i32) (result i32) (i32.const 0)))"""
    guests = command(CAT), bytes(wasmtime.wat2wasm(wat))
    for guest, other, version in ((*guests, 7), (*reversed(guests), 2)):
        with runtime.spawn(guest) as actor:
            saved = actor.snapshot(tmp_path / f"{version}.safetensors")
        assert open_snapshot(saved.path).manifest.format_version == version
        with pytest.raises(SnapshotInvalid, match="another kind of guest"):
            runtime.restore(saved, guest=other)


def test_an_undone_message_takes_tools_back(runtime: Runtime) -> None:
    """A trap leaves clock and chance where they were. An exit is no failure: it undoes nothing."""
    ran: list[str] = []

    def pay(_: bytes) -> None:
        ran.append("pay")

    tools = {"pay": function_tool(pay, undo=lambda *_: ran.append("back"))}
    how = {"tools": tools, "limits": Limits(on_failure="undo"), "seed": 7, "clock_ns": 10}
    said = []
    with runtime.spawn(PAYS, **how) as actor, runtime.spawn(PAYS, **how) as untroubled:  # type: ignore[arg-type]
        with pytest.raises(GuestTrapped):
            actor.send("!")
        assert (ran, actor.n_messages, actor.usage.undone) == (["pay", "back"], 0, 1)
        for each in (actor, untroubled):
            with pytest.raises(GuestExited) as caught:
                each.send("?")
            assert each.n_messages == 1
            assert [it.name for it in caught.value.reply.tool_calls] == ["pay"]
            said.append(caught.value.reply.data)
    assert ran == ["pay", "back", "pay", "pay"]
    assert said[0] == said[1] != b""
