from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import wasmtime

from isthmus.errors import GuestInvalid, GuestTrapped, SnapshotInvalid
from isthmus.runtime.sources import bundled_guests
from isthmus.wasm import Engine, GlobalValue, read_globals, write_globals
from isthmus.wasm.instrument import instrument
from isthmus.wasm.interface import read_interface
from isthmus.wasm.resumable import is_resumable
from tests.unit.wasm_guest import initialize, spawn, wasm


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine() as engine:
        yield engine


GLOBALS = """
(global $fixed i32 (i32.const 7))
(global $a (mut i32) (i32.const -2))
(global $b (mut i64) (i64.const 0x0123456789abcdef))
(global $c (mut f32) (f32.const nan:0x200001))
(global $d (mut f64) (f64.const nan:0x4000000000001))
(global $e (mut v128) (v128.const i64x2 1 2))
"""


def test_every_mutable_global_is_reached_with_its_very_bits(engine: Engine) -> None:
    with spawn(engine, wasm(GLOBALS)) as instance:
        values = read_globals(instance)
    assert [(it.index, it.type, it.bits.hex()) for it in values] == [
        (1, "i32", "feffffff"),
        (2, "i64", "efcdab8967452301"),
        (3, "f32", "0100a07f"),
        (4, "f64", "010000000000f47f"),
        (5, "v128", "01000000000000000200000000000000"),
    ]


def test_globals_are_written_back(engine: Engine) -> None:
    with spawn(engine, wasm(GLOBALS)) as instance:
        changed = tuple(
            GlobalValue(it.index, it.type, bytes(b ^ 0x55 for b in it.bits))
            for it in read_globals(instance)
        )
        write_globals(instance, changed)
        assert read_globals(instance) == changed


def test_other_globals_are_refused(engine: Engine) -> None:
    with spawn(engine, wasm(GLOBALS)) as instance:
        values = read_globals(instance)
        wrong = GlobalValue(1, "i64", bytes(8)), *values[1:]
        short = GlobalValue(1, "i32", bytes(3)), *values[1:]
        for given in (values[1:], (*values, values[0]), wrong, short):
            with pytest.raises(SnapshotInvalid):
                write_globals(instance, given)
        assert read_globals(instance) == values


def test_start_runs_once_before_initialize(engine: Engine) -> None:
    guest = wasm(
        "(global $n (mut i32) (i32.const 0))",
        "(func $s (global.set $n (i32.add (i32.mul (global.get $n) (i32.const 10)) (i32.const 1))))"
        "(start $s)",
        '(func (export "_initialize")'
        " (global.set $n (i32.add (i32.mul (global.get $n) (i32.const 10)) (i32.const 2))))",
        '(func (export "n") (result i32) (global.get $n))',
    )
    with spawn(engine, guest) as instance:
        assert instance.call("n") == 0
        initialize(instance)
        assert instance.call("n") == 12


def test_a_start_function_that_traps(engine: Engine) -> None:
    with (
        spawn(engine, wasm("(func $s unreachable) (start $s)")) as instance,
        pytest.raises(GuestTrapped, match="unreachable"),
    ):
        initialize(instance)


TABLE = "(table $t 4 4 funcref) (elem $e func $f) (func $f)"


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        (TABLE + "(func (table.set $t (i32.const 0) (ref.null func)))", r"table\.set"),
        (TABLE + "(func (drop (table.grow $t (ref.null func) (i32.const 1))))", r"table\.grow"),
        (
            TABLE + "(func (table.fill $t (i32.const 0) (ref.null func) (i32.const 1)))",
            r"table\.fill",
        ),
        (
            TABLE + "(func (table.copy $t $t (i32.const 0) (i32.const 1) (i32.const 1)))",
            r"table\.copy",
        ),
        (
            TABLE + "(func (table.init $t $e (i32.const 0) (i32.const 0) (i32.const 1)))",
            r"table\.init",
        ),
        (TABLE + "(func (elem.drop $e))", r"elem\.drop"),
        ('(data $d "x") (func (data.drop $d))', r"data\.drop"),
        ("(global (mut funcref) (ref.null func))", "holds references"),
        ('(global (export "isthmus:start") i32 (i32.const 0))', "are ours"),
    ],
)
def test_state_that_would_stay_hidden_is_refused(engine: Engine, parts: str, reason: str) -> None:
    with pytest.raises(GuestInvalid, match=reason):
        engine.compile(wasm(parts), "guest")


EVERYTHING = """
(type $v (func))
(table $t 2 funcref) (elem (i32.const 0) $leaf $leaf)
(data $passive "abc")
(func $leaf)
(func (export "all") (param $n i32) (result i32)
  (local $v v128) (local $f f64)
  (block $a (block $b (block $c (br_table $a $b $c (local.get $n)))))
  (local.set $v (v128.const i32x4 1 2 3 4))
  (local.set $v (i8x16.shuffle 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 (local.get $v) (local.get $v)))
  (v128.store offset=64 (i32.const 0) (local.get $v))
  (local.set $v (v128.load8_lane 3 (i32.const 0) (local.get $v)))
  (v128.store16_lane offset=300 2 (i32.const 0) (local.get $v))
  (local.set $v (v128.load32_zero (i32.const 0)))
  (local.set $v (f32x4.relaxed_madd (local.get $v) (local.get $v) (local.get $v)))
  (drop (i16x8.extract_lane_s 3 (local.get $v)))
  (local.set $f (f64.const 1.5))
  (drop (i64.trunc_sat_f64_s (local.get $f)))
  (drop (select (result i32) (i32.const 1) (i32.const 2) (local.get $n)))
  (drop (ref.is_null (ref.func $leaf)))
  (drop (ref.is_null (table.get $t (i32.const 0))))
  (drop (table.size $t))
  (call_indirect $t (type $v) (i32.const 1))
  (memory.init $passive (i32.const 8) (i32.const 0) (i32.const 3))
  (memory.copy (i32.const 16) (i32.const 8) (i32.const 3))
  (memory.fill (i32.const 32) (i32.const 9) (i32.const 38))
  (if (result i32) (i32.eqz (memory.grow (i32.const 0)))
    (then (i32.const 0xfc0926)) (else (i32.load8_u (i32.const 16)))))
"""


def test_every_kind_of_immediate_is_skipped(engine: Engine) -> None:
    with spawn(engine, wasm(EVERYTHING)) as instance:
        assert instance.call("all", 1) == ord("a")


def test_bundled_guests_have_few_globals_and_are_otherwise_unchanged() -> None:
    """The stack pointer, and two that make a guest resumable (asyncify's)."""
    for path in bundled_guests().values():
        wasm = path.read_bytes()
        n_globals = 3 if is_resumable(wasm) else 1
        rewritten = instrument(wasm, read_interface(wasm))
        module = wasmtime.Module(wasmtime.Engine(), rewritten)
        ours = [it.name for it in module.exports if it.name.startswith("isthmus:")]
        assert ours == [f"isthmus:global:{n}" for n in range(n_globals)]
        assert len(rewritten) - len(wasm) < 30 * n_globals


def test_a_second_start_compiles_nothing(tmp_path: Path) -> None:
    guest = wasm("(global (mut i32) (i32.const 3)) (func $s) (start $s)")
    compiled = []
    for _ in range(3):
        with Engine(code_cache=tmp_path / "guests") as engine:
            loaded = engine.compile(guest, "guest")
            compiled.append(loaded.was_compiled)
            with spawn(engine, loaded) as instance:
                initialize(instance)
                assert read_globals(instance)[0].bits == b"\3\0\0\0"
    assert compiled == [True, False, False]
    assert len(list((tmp_path / "guests").iterdir())) == 1


@pytest.mark.slow
def test_a_damaged_cache_is_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "guests"

    def compiled() -> bool:
        with Engine(code_cache=folder) as engine:
            return engine.compile(wasm(), "guest").was_compiled

    assert compiled()
    for damage in (lambda data: data[:-1], lambda data: data[:100], lambda data: b"\0" * len(data)):
        for path in folder.iterdir():
            path.write_bytes(damage(path.read_bytes()))
        assert compiled()
        assert not compiled()


def test_a_cache_that_others_may_write_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "guests"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    for _ in range(2):
        with Engine(code_cache=folder) as engine:
            assert engine.compile(wasm(), "guest").was_compiled
    assert list(folder.iterdir()) == []


def test_memory_and_message_are_still_required(engine: Engine) -> None:
    assert engine.compile(wasm(), "guest").functions["on_message"]
    with pytest.raises(GuestInvalid, match="on_replay must be"):
        engine.compile(wasm('(func (export "on_replay"))'), "guest")
