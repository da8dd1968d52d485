"""How fast do kernels read and write a guest's memory? Against memory that is the device's alone.

A chain of `scale` kernels goes back and forth between two halves of the bytes: once in a guest's
linear memory that was told to live where the device reads it fastest, as KV caches are, once in
plain device memory, and once in a guest's heap, which stays near the processor. What it costs to
move the bytes to the device, and what the guest pays that touches them afterwards, is told too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import numpy as np

from isthmus.actor import Actor
from isthmus.benchmarks.record import Plan, Record, describe_run, median_ratio, take_turns
from isthmus.config import Limits
from isthmus.device import Device
from isthmus.device.base import Backend
from isthmus.device.buffer import Binding
from isthmus.device.graph import Graph
from isthmus.model import Model
from isthmus.native._ggml import GgmlType
from isthmus.runtime import Runtime
from isthmus.units import MIB, WASM_PAGE, GuestPtr, HostAddr, align_up

SIZES = (64, 256)
"""MiB that one kernel reads and writes together."""
_KERNELS = 16
_N = 64
_HEAP_NBYTES = 16 * MIB
Place = Callable[[int, int], None]
"""(tensor, 0 or 1): puts a tensor over one of the halves."""


def bench_memory(
    runtime: Runtime, _model: Model, plan: Plan, progress: Callable[[], None]
) -> Record:
    """Bytes per second of kernels, and what it costs when both sides want the same bytes."""
    results = [_measure(runtime, mib * MIB, plan.repeats, progress) for mib in plan.sizes]
    return {**describe_run(runtime.device.info), "results": results}


def _measure(runtime: Runtime, nbytes: int, repeats: int, progress: Callable[[], None]) -> Record:
    device, half = runtime.device, nbytes // 2
    with (
        _matrices(runtime, nbytes) as (actor, halves),
        closing(device.new_backend()) as backend,
        closing(device.allocate(nbytes)) as plain,
    ):
        binding = actor.binding
        in_guest = lambda tensor, which: binding.place(tensor, halves[which])  # noqa: E731
        in_plain = lambda tensor, which: plain.place(  # noqa: E731
            tensor, type(plain.base)(plain.base + which * half)
        )
        with closing(_chain(device, half, in_guest)) as over_heap:
            in_heap = {"mapped": lambda: _seconds(backend, over_heap, binding)}
            mapped = take_turns(in_heap, 3, lambda: None)
        settle_s = sum(_timed(lambda at=at: binding.settle(at, [half])) for at in halves)  # type: ignore[misc]
        with (
            closing(_chain(device, half, in_guest)) as over_guest,
            closing(_chain(device, half, in_plain)) as over_plain,
        ):
            runs = {
                "guest": lambda: _seconds(backend, over_guest, binding),
                "plain": lambda: _seconds(backend, over_plain),
            }
            samples = take_turns(runs, repeats, progress)
            back_s = _timed(lambda: _touch(actor, halves[1], half))
            again_s = _timed(lambda: _touch(actor, halves[1], half))
            for it in halves:
                binding.unsettle(it)
    moved = nbytes * _KERNELS / 1e9
    return {
        "mib": nbytes // MIB,
        "guest_gb_per_s": moved / float(np.median(samples["guest"])),
        "plain_gb_per_s": moved / float(np.median(samples["plain"])),
        "ratio": median_ratio(samples["plain"], samples["guest"]),
        "heap_gb_per_s": moved / float(np.median(mapped["mapped"])),
        "move_to_device_ms": 1e3 * settle_s,
        "first_touch_by_guest_ms": 1e3 * back_s,
        "second_touch_ms": 1e3 * again_s,
        "samples_s": samples,
    }


@contextmanager
def _matrices(runtime: Runtime, nbytes: int) -> Iterator[tuple[Actor, tuple[HostAddr, HostAddr]]]:
    """A guest that has filled two matrices of half of the bytes each, and where they lie."""
    limits = Limits(memory_nbytes=align_up(nbytes + _HEAP_NBYTES, WASM_PAGE))
    with runtime.spawn("gemm", seed=0, limits=limits) as actor:
        rows = nbytes // (2 * 4 * _N)
        setup = json.loads(actor.send(f"setup rows={rows} k={_N} n={_N}").text)
        a, c = (actor.region.address(GuestPtr(setup[name]), nbytes // 2) for name in "ac")
        yield actor, (a, c)


def _chain(device: Device, nbytes: int, place: Place) -> Graph:
    """Kernels that each read one half and write the other."""
    graph = Graph(device.library, _KERNELS + 2)
    tensor = graph.tensor(GgmlType.F32, nbytes // 4)
    place(tensor, 0)
    for step in range(_KERNELS):
        tensor = graph.scale(tensor, 1.0)
        place(tensor, (step + 1) % 2)
    graph.expand(tensor)
    return graph


def _seconds(backend: Backend, graph: Graph, *memories: Binding) -> float:
    return _timed(lambda: backend.compute(graph.pointer, *memories))


def _touch(actor: Actor, host: HostAddr, nbytes: int) -> None:
    """The processor reads a word of each page."""
    with actor.region.view(host - actor.region.base, nbytes) as view:
        np.frombuffer(view.memory, np.uint32)[::1024].sum()


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
