"""Commands in WebAssembly text, and commands that compilers make of C and Rust."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from pathlib import Path

import wasmtime

HERE = Path(__file__).parent
_IMPORTS = """
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "clock_time_get"
    (func $clock (param i32 i64 i32) (result i32)))
"""
_FUNCTIONS = """
  (memory (export "memory") 2)
  (func $gets (result i32)
    (i32.store (i32.const 0) (i32.const 1024)) (i32.store (i32.const 4) (i32.const 4096))
    (if (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable))
    (i32.load (i32.const 8)))
  (func $puts (param $fd i32) (param $at i32) (param $n i32)
    (i32.store (i32.const 0) (local.get $at)) (i32.store (i32.const 4) (local.get $n))
    (if (call $write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))
      (then unreachable)))
"""


def command(body: str, more: str = "", imports: str = "") -> bytes:
    """A command that does this; `$gets` reads into 1024, `$puts` writes (descriptor, at, n)."""
    start = f'(func (export "_start") (local $n i32) {body})'
    return bytes(wasmtime.wat2wasm(f"(module {_IMPORTS} {imports} {_FUNCTIONS} {more} {start})"))


CAT = """(loop $again
  (local.set $n (call $gets))
  (if (local.get $n) (then
    (call $puts (i32.const 1) (i32.const 1024) (local.get $n)) (br $again))))"""
"""Copies its standard input to its standard output."""
YES = """(i32.store (i32.const 1024) (i32.const 0x0a79))
  (loop $again (call $puts (i32.const 1) (i32.const 1024) (i32.const 2)) (br $again))"""
"""Says y for ever."""
READS_ON = "(loop $again (drop (call $gets)) (br $again))"
"""Reads on at the end of its input."""


def compile_c(source: Path, target: Path) -> None:
    """A command of a C program and its libc."""
    flags = ("-target", "wasm32-wasi", "-O1", "-s")
    _run([sys.executable, "-m", "ziglang", "cc", *flags, "-o", str(target), str(source)])


def compile_rust(source: Path, target: Path) -> None:
    """A command of a Rust program and its standard library."""
    compiler = rustc()
    assert compiler is not None
    wasi = ("--target", "wasm32-wasi", "--edition", "2021", "-O", "-C", "strip=debuginfo")
    _run([compiler, *wasi, "-o", str(target), str(source)])


@functools.cache
def rustc() -> str | None:
    """A Rust compiler that has a standard library for WASI; None if there is none."""
    for path in (shutil.which("rustc"), "/usr/bin/rustc"):
        if path and Path(path).exists():
            asked = [path, "--print", "target-libdir", "--target", "wasm32-wasi"]
            found = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
            if found.returncode == 0 and Path(found.stdout.strip()).is_dir():
                return path
    return None


def _run(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
