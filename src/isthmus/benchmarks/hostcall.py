"""What does crossing the sandbox's border cost? Guest to host, host to guest, and nothing to do.

Guest to host is a suspension of the guest's fiber and its resumption. Host to guest is a call from
its begin to its end: a fiber is made and dropped. The rival is wasmtime-py's own, documented way of
doing the same, in the same process, which cannot suspend a guest.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import wasmtime

from isthmus.benchmarks.record import Plan, Record, describe_run, median_ratio, take_turns
from isthmus.model import Model
from isthmus.runtime import Runtime

_CALLS = 20_000
_IDLE_S = 1.0

_RIVAL = """
(module
  (import "host" "length" (func $length (param i32) (result i32)))
  (func (export "loop") (param $n i32)
    (local $i i32)
    (loop $again
      (drop (call $length (i32.const 1)))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br_if $again (i32.lt_u (local.get $i) (local.get $n)))))
  (func (export "nop") (param i32) (result i32) (local.get 0)))
"""


def bench_hostcall(
    runtime: Runtime, model: Model, plan: Plan, progress: Callable[[], None]
) -> Record:
    """Microseconds a call, ours and wasmtime-py's."""
    with (
        runtime.spawn("bench", models={"default": model}, args=["n_ctx=256"], seed=0) as actor,
        ThreadPoolExecutor(1) as pool,  # guests run on other threads than the main one
    ):
        actor.send("prefill 2 1")
        loop, nop = _rival()
        instance = actor.instance
        runs: dict[str, Callable[[], float]] = {
            "guest_to_host": lambda: _seconds(lambda: actor.send(f"hostcall {_CALLS}")),
            "guest_to_host_wasmtime_py": lambda: _seconds(lambda: loop(_CALLS)),
            "host_to_guest": lambda: pool.submit(_repeat, lambda: instance.call("nop", 1)).result(),
            "host_to_guest_wasmtime_py": lambda: _repeat(lambda: nop(1)),
        }
        samples = take_turns(runs, plan.repeats, progress)
        idle = _idle_cpu_share()
    results = [
        {
            "call": name,
            "us": min(samples[name]) / _CALLS * 1e6,
            "median_us": sorted(samples[name])[plan.repeats // 2] / _CALLS * 1e6,
            "wasmtime_py_median_us": sorted(samples[f"{name}_wasmtime_py"])[plan.repeats // 2]
            / _CALLS
            * 1e6,
            "speedup": median_ratio(samples[f"{name}_wasmtime_py"], samples[name]),
        }
        for name in ("guest_to_host", "host_to_guest")
    ]
    return {
        **describe_run(runtime.device.info),
        "calls_per_sample": _CALLS,
        "results": results,
        "idle_cpu_share": idle,
        "samples_s": samples,
    }


def _rival() -> tuple[Callable[[int], object], Callable[[int], object]]:
    engine = wasmtime.Engine()
    store = wasmtime.Store(engine)
    linker = wasmtime.Linker(engine)
    number = wasmtime.ValType.i32()
    linker.define_func("host", "length", wasmtime.FuncType([number], [number]), lambda handle: 2)
    instance = linker.instantiate(store, wasmtime.Module(engine, _RIVAL))
    loop, nop = instance.exports(store)["loop"], instance.exports(store)["nop"]
    assert isinstance(loop, wasmtime.Func)
    assert isinstance(nop, wasmtime.Func)
    return (lambda n: loop(store, n)), (lambda n: nop(store, n))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _repeat(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    for _ in range(_CALLS):
        call()
    return time.perf_counter() - start


def _idle_cpu_share() -> float:
    """CPU time over wall-clock time of the whole process while nothing is asked of it."""
    time.sleep(0.5)  # workers that spin after the last submission go to sleep
    cpu, wall = time.process_time(), time.perf_counter()
    time.sleep(_IDLE_S)
    return (time.process_time() - cpu) / (time.perf_counter() - wall)
