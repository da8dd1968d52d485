"""From the bytes of a module to machine code and what is known of it.

A stranger's module may crash the compiler, or keep it busy until memory or patience ends. So it is
checked and compiled in a process of its own, with limits of memory and time that grow with the
module; this process only takes the result. Guests of this package are compiled here, in the same
way.

The result is one line of JSON, a Report, and the machine code after it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import wasmtime

from isthmus.errors import GuestInvalid, Overloaded
from isthmus.trial import Ending, Outcome, TrialLimits, try_out
from isthmus.units import GIB, MIB, format_nbytes
from isthmus.wasm import binary
from isthmus.wasm.code import check_code
from isthmus.wasm.engine_config import EngineKind, configured
from isthmus.wasm.instrument import instrument
from isthmus.wasm.interface import Interface, read_interface
from isthmus.wasm.names import shown

_THREADS = min(4, os.cpu_count() or 1)
"""Threads that compile one module; others have work to do meanwhile."""
_MAX_PROBLEM = 600
"""Characters of wasmtime's own words."""


class Report(msgspec.Struct, frozen=True):
    """What became of a module: its interface, or why it is refused, without the guest's name."""

    interface: Interface | None = None
    problem: str = ""


def unpack(result: bytes) -> tuple[Report, bytes]:
    """A report and machine code from a result. ValueError if it is none."""
    line, _, code = result.partition(b"\n")
    return _REPORT.decode(line), code


def compile_here(wasm: bytes, kind: EngineKind) -> bytes:
    """The result for a module that this process compiles itself."""
    try:
        interface, code = _compile(wasm, wasmtime.Engine(configured(kind)))
    except GuestInvalid as error:
        return msgspec.json.encode(Report(problem=str(error)))
    return msgspec.json.encode(Report(interface)) + b"\n" + code


def compile_apart(wasm: bytes, kind: EngineKind, check: Callable[[], None]) -> bytes:
    """The result for a stranger's module, from a process of its own.

    `check` is called meanwhile, and may raise: that ends the process. Raises Overloaded.
    """
    limits = _limits(len(wasm))
    job = msgspec.json.encode(kind) + b"\n" + wasm
    try:
        outcome = try_out(Path(__file__), "compile_job", job, limits, check)
    except OSError as error:
        raise Overloaded(f"no process can be started that compiles a guest: {error}") from None
    if outcome.ending is Ending.DONE:
        return outcome.result
    return msgspec.json.encode(Report(problem=_complaint(outcome, limits)))


def compile_job(job: bytes) -> bytes:
    """In the child: compiles a module. `job` is a line of JSON, an EngineKind, and the module."""
    os.environ["RAYON_NUM_THREADS"] = str(_THREADS)
    line, _, wasm = job.partition(b"\n")
    return compile_here(wasm, msgspec.json.decode(line, type=EngineKind))


def _compile(wasm: bytes, engine: wasmtime.Engine) -> tuple[Interface, bytes]:
    """A module's interface and machine code. GuestInvalid, without the guest's name."""
    try:
        wasmtime.Module.validate(engine, wasm)
        interface = read_interface(wasm)
        code = binary.readers(wasm).get(binary.CODE)
        if code is not None:
            check_code(code)
        module = wasmtime.Module(engine, instrument(wasm, interface))
    except wasmtime.WasmtimeError as error:
        words = shown(" ".join(str(error).split()), _MAX_PROBLEM)
        raise GuestInvalid(f"is not valid WebAssembly: {words}") from None
    except (IndexError, KeyError, UnicodeDecodeError):
        raise GuestInvalid("is not valid WebAssembly: a section ends early") from None
    return interface, bytes(module.serialize())


def _limits(nbytes: int) -> TrialLimits:
    """What compiling a module of so many bytes may use.

    14 MB of Go, optimised, take 95 s of a processor and 2.1 GiB; other programs take less.
    """
    size = nbytes / MIB
    cpu_s = min(600, int(20 + 30 * size))
    return TrialLimits(
        cpu_s=cpu_s,
        memory_nbytes=int(min(4 * GIB, (640 + 256 * size) * MIB)) + _THREADS * 128 * MIB,
        stack_nbytes=8 * MIB,
        result_nbytes=int(min(GIB, (64 + 64 * size) * MIB)),
        wall_s=60.0 + 2 * cpu_s,
    )


def _complaint(outcome: Outcome, limits: TrialLimits) -> str:
    if outcome.ending is Ending.BUSY:
        raise Overloaded("the machine is too busy to compile a guest: try again later")
    if outcome.ending is Ending.OUT_OF_TIME:
        return (
            f"takes more than {limits.cpu_s} s of processor time to compile, the most for a "
            "module of its size: split its largest functions"
        )
    return (
        f"cannot be compiled: it takes more than {format_nbytes(limits.memory_nbytes)} of memory, "
        "the most for a module of its size, or the compiler fails on it"
    )


_REPORT = msgspec.json.Decoder(Report)
