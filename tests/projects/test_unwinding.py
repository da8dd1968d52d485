"""Exceptions of a module become returns and tests, and mean the same."""

from __future__ import annotations

import pytest
import wasmtime

from isthmus.errors import BuildFailed
from isthmus.projects.unwinding import without_exceptions

MODULE = """
(module
  (tag $jump (param i32))
  (type $void (func))
  (table funcref (elem $thrower $quiet))
  (global $seen (mut i32) (i32.const 0))
  (func $thrower (param $value i32) (result i64)
    (if (i32.gt_s (local.get $value) (i32.const 9)) (then (throw $jump (local.get $value))))
    (i64.const 5))
  (func $quiet (param i32) (result i64) (i64.const 6))
  ;; What is thrown passes through, and nothing after the call is done.
  (func $through (param $value i32) (param $which i32) (result f64)
    (call_indirect (param i32) (result i64) (local.get $value) (local.get $which))
    (global.set $seen (i32.add (global.get $seen) (i32.const 1)))
    f64.convert_i64_s)
  (func (export "run") (param $value i32) (param $which i32) (result i32)
    (block $caught (result i32)
      (loop $again
        (try_table (catch $jump $caught)
          (drop (call $through (local.get $value) (local.get $which)))
          (local.set $value (i32.add (local.get $value) (i32.const 1)))
          (br_if $again (i32.lt_s (local.get $value) (i32.const 12)))))
      (i32.const -1)))
  ;; What is caught and thrown again goes to the next one outside.
  (func (export "again") (param $value i32) (result i32)
    (block $outer (result i32)
      (try_table (catch $jump $outer)
        (block $inner (result exnref)
          (try_table (catch_all_ref $inner)
            (drop (call $through (local.get $value) (i32.const 0))))
          (return (i32.const -2)))
        (throw_ref))
      (unreachable)))
  (func (export "seen") (result i32) (global.get $seen)))
"""


def exports(module: bytes) -> wasmtime.InstanceExports:
    config = wasmtime.Config()
    config.wasm_exceptions = False
    store = wasmtime.Store(wasmtime.Engine(config))
    instance = wasmtime.Instance(store, wasmtime.Module(store.engine, module), [])
    return {  # type: ignore[return-value]
        name: (lambda *given, it=it: it(store, *given))
        for name, it in instance.exports(store).items()
    }


def test_what_is_thrown_is_caught() -> None:
    found = exports(without_exceptions(bytes(wasmtime.wat2wasm(MODULE))))
    assert found["run"](3, 1) == -1  # nothing is thrown
    assert found["seen"]() == 9
    assert found["run"](8, 0) == 10  # 8 and 9 pass
    assert found["seen"]() == 11
    assert found["run"](500, 0) == 500
    assert found["run"](3, 1) == -1  # what was caught is forgotten


def test_what_is_caught_is_thrown_again() -> None:
    found = exports(without_exceptions(bytes(wasmtime.wat2wasm(MODULE))))
    assert found["again"](1) == -2
    assert found["again"](77) == 77


def test_a_module_without_exceptions_is_left_alone() -> None:
    module = bytes(wasmtime.wat2wasm('(module (func (export "f")))'))
    assert without_exceptions(module) == module


def test_other_exceptions_are_refused() -> None:
    for text in (
        "(module (tag) (tag))",
        "(module (tag (param i32)) (func (block $all (try_table (catch_all $all)))))",
    ):
        with pytest.raises(BuildFailed, match="exceptions"):
            without_exceptions(bytes(wasmtime.wat2wasm(text)))
