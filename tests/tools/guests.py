"""A guest that calls the tool which its message names, and answers with what came of it."""

from __future__ import annotations

import wasmtime

CALLER = bytes(
    wasmtime.wat2wasm(
        """(module
  (import "isthmus" "message_read" (func $read (param i32 i32) (result i32)))
  (import "isthmus" "tool_call" (func $call (param i32 i32 i32 i32) (result i32)))
  (import "isthmus" "tool_result" (func $result (param i32 i32) (result i32)))
  (import "isthmus" "tool_list" (func $list (param i32 i32) (result i32)))
  (import "isthmus" "reply" (func $reply (param i32 i32) (result i32)))
  (memory (export "memory") 64)
  (func (export "on_message") (param $n i32) (result i32)
    (local $at i32) (local $code i32) (local $size i32)
    (drop (call $read (i32.const 0) (local.get $n)))
    ;; the first byte: '?' lists the tools, '!' passes a failure on, anything else answers with it
    (if (i32.eq (i32.load8_u (i32.const 0)) (i32.const 63)) (then
      (local.set $size (call $list (i32.const 65536) (i32.const 4000000)))
      (return (call $reply (i32.const 65536) (local.get $size)))))
    ;; the name ends with a space
    (local.set $at (i32.const 1))
    (block $found (loop $look
      (br_if $found (i32.ge_u (local.get $at) (local.get $n)))
      (br_if $found (i32.eq (i32.load8_u (local.get $at)) (i32.const 32)))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br $look)))
    (local.set $code (call $call
      (i32.const 1) (i32.sub (local.get $at) (i32.const 1))
      (i32.add (local.get $at) (i32.const 1))
      (select (i32.sub (i32.sub (local.get $n) (local.get $at)) (i32.const 1)) (i32.const 0)
        (i32.lt_u (local.get $at) (local.get $n)))))
    (if (i32.and (i32.lt_s (local.get $code) (i32.const 0))
                 (i32.eq (i32.load8_u (i32.const 0)) (i32.const 33))) (then
      (return (local.get $code))))
    (local.set $size (call $result (i32.const 65536) (i32.const 4000000)))
    (if (i32.lt_s (local.get $size) (i32.const 0)) (then (return (local.get $size))))
    (call $reply (i32.const 65536) (local.get $size))))"""
    )
)
"""A message is a letter, a tool's name, a space and its arguments. `=NAME ARGUMENTS` answers with
the result or the failure's text, `!NAME ARGUMENTS` ends with the failure, `?` lists the tools."""

_SEATS = '{"seat": "1A"}{"seat": "2B"}'
TWICE = bytes(
    wasmtime.wat2wasm(
        """(module
  (import "isthmus" "tool_call" (func $call (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "booknone") (data (i32.const 8) %s)
  (func (export "on_message") (param i32) (result i32)
    (drop (call $call (i32.const 0) (i32.const 4) (i32.const 8) (i32.const 14)))
    (drop (call $call (i32.const 0) (i32.const 4) (i32.const 22) (i32.const 14)))
    (call $call (i32.const 4) (i32.const 4) (i32.const 0) (i32.const 0))))"""
        % ('"' + _SEATS.replace('"', '\\"') + '"')
    )
)
"""Books two seats, and then fails."""
