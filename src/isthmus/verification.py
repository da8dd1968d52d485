"""The proof of zero copy: addresses, counters, resident memory, latency and the answer itself.

For each size the bundled `gemm` guest fills matrices of that many bytes in its own memory, has the
device multiply them, and checks every element against float64. Two actors do the same in turn:
one in place, one through the explicit copy path that most runtimes have.
"""

from __future__ import annotations

import gc
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import wasmtime

from isthmus.actor import Actor
from isthmus.config import Limits
from isthmus.device.graph import Graph
from isthmus.device.graph_allocator import GraphAllocator
from isthmus.machine import exact_resident_nbytes
from isthmus.model import Model
from isthmus.native import wasmtime_capi as capi
from isthmus.native._ggml import GgmlType
from isthmus.runtime import Runtime
from isthmus.units import (
    KIB,
    MIB,
    WASM_PAGE,
    DeviceAddr,
    GuestPtr,
    HostAddr,
    align_up,
    format_nbytes,
)

SIZES = tuple(64 * KIB * 4**power for power in range(7))
"""Bytes of the large operand and the result together: 64 KiB to 256 MiB."""
_K = _N = 64
_WARM_UP = 40
_ROW_NBYTES = 4 * (_K + _N)
_HEAP_NBYTES = 16 * MIB
_DRIVER_NBYTES = 512 * KIB


@dataclass(frozen=True)
class SizeProof:
    """What was seen at one size. Growths and copies are in bytes, latencies in seconds."""

    nbytes: int
    pointer_identity: bool
    addresses: dict[str, str]
    bytes_copied: int
    bytes_copied_by_copies: int
    resident_growth: int
    resident_growth_by_copies: int
    ratio: float
    """Latency in place divided by latency with copies: less is better."""
    in_place_s: list[float]
    copies_s: list[float]
    wrong: int
    wrong_by_copies: int
    checked: int
    driver_nbytes: int = 0
    """Resident memory that a graphics driver may take for itself meanwhile."""

    @property
    def holds(self) -> bool:
        """Whether every claim holds; latency is claimed from 1 MiB on."""
        return (
            self.pointer_identity
            and self.bytes_copied == 0
            and self.wrong == 0
            and self.checked > 0
            and self.resident_growth < self.nbytes / 100 + self.driver_nbytes
            and (self.ratio <= 1.0 or self.nbytes < MIB)
        )


@dataclass(frozen=True)
class ModelProof:
    """What was seen while a model talked: its session lies in the guest's memory, once."""

    logits_guest_ptr: int
    logits_host_address: str
    logits_device_address: str
    pointer_identity: bool
    bytes_copied: int
    n_tokens: int
    session_nbytes: int
    kv_nbytes_used: int
    resident_growth: int

    @property
    def holds(self) -> bool:
        """Whether every claim holds."""
        return self.pointer_identity and self.bytes_copied == 0


def prove_sizes(
    runtime: Runtime, sizes: Sequence[int], repeats: int, progress: Callable[[], None]
) -> list[SizeProof]:
    """Runs the proof at each size, smallest first; a small run before warms everything up."""
    _prove_size(runtime, sizes[0], 1)
    proofs = []
    for nbytes in sizes:
        turns = max(5, min(repeats, repeats * 16 * MIB // nbytes))
        proofs.append(_prove_size(runtime, nbytes, turns))
        progress()
    return proofs


def prove_model(actor: Actor, model: Model, growth: int) -> ModelProof:
    """What can be seen of an actor's first session after it talked; `growth` is in bytes."""
    session = actor.sessions[0]
    host = actor.region.base + session.logits_ptr
    device = actor.binding.address(session.base)
    return ModelProof(
        logits_guest_ptr=session.logits_ptr,
        logits_host_address=hex(host),
        logits_device_address=hex(device),
        pointer_identity=_is_one(
            actor, _memory_base(actor) + session.logits_ptr, HostAddr(host), device
        ),
        bytes_copied=actor.counters.bytes_copied + actor.device.counters.bytes_copied,
        n_tokens=session.n_tokens,
        session_nbytes=session.layout.nbytes,
        kv_nbytes_used=session.n_tokens * session.layout.token_nbytes,
        resident_growth=growth,
    )


def plot(proofs: Sequence[SizeProof], file: Path) -> None:
    """Draws latency and copied bytes over size. Needs matplotlib."""
    from matplotlib import pyplot  # noqa: PLC0415 - an optional dependency

    sizes = [proof.nbytes / MIB for proof in proofs]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for label, values in (
        ("with copies", [statistics.median(proof.copies_s) * 1e3 for proof in proofs]),
        ("in place", [statistics.median(proof.in_place_s) * 1e3 for proof in proofs]),
    ):
        left.loglog(sizes, values, marker="o", label=label)
    left.set(xlabel="MiB of matrices", ylabel="ms for one product", title="Latency")
    for label, counts in (
        ("with copies", [proof.bytes_copied_by_copies / MIB for proof in proofs]),
        ("in place", [proof.bytes_copied / MIB for proof in proofs]),
    ):
        right.plot(sizes, counts, marker="o", label=label)
    right.set(xlabel="MiB of matrices", ylabel="MiB copied", title="Copied per product")
    right.set_xscale("log")
    for axes in (left, right):
        axes.legend()
        axes.grid(visible=True, alpha=0.3)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def table_rows(proofs: Sequence[SizeProof]) -> list[tuple[str, ...]]:
    """The proofs for people."""
    return [
        (
            format_nbytes(proof.nbytes),
            "equal" if proof.pointer_identity else "DIFFERENT",
            f"{proof.bytes_copied} B",
            format_nbytes(proof.bytes_copied_by_copies),
            format_nbytes(proof.resident_growth),
            format_nbytes(proof.resident_growth_by_copies),
            f"{proof.ratio:.2f}",
            f"{proof.wrong} of {proof.checked}",
        )
        for proof in proofs
    ]


TABLE_HEADS = (
    "size",
    "addresses",
    "copied",
    "(copy path)",
    "memory growth",
    "(copy path)",
    "latency/copy path",
    "wrong",
)


def as_json(proof: SizeProof | ModelProof) -> dict[str, object]:
    """A proof with its verdict."""
    return {**asdict(proof), "holds": proof.holds}


def _prove_size(runtime: Runtime, nbytes: int, turns: int) -> SizeProof:
    if runtime.device.has_own_memory:
        _load_kernels(runtime, nbytes)
    with _Gemm(runtime, nbytes, copies=False) as direct:
        direct.compute()
        direct_seconds: list[float] = []
        with _Gemm(runtime, nbytes, copies=True) as staged:
            staged.compute()
            staged_seconds: list[float] = []
            for turn in range(turns):
                pair = [(direct, direct_seconds), (staged, staged_seconds)]
                for gemm, seconds in pair if turn % 2 else reversed(pair):
                    seconds.append(gemm.compute())
            checked_copies = staged.check()
        checked = direct.check()
        return SizeProof(
            nbytes=nbytes,
            pointer_identity=direct.pointer_identity(),
            addresses=direct.addresses(),
            bytes_copied=direct.bytes_copied,
            bytes_copied_by_copies=staged.bytes_copied // (turns + 1),
            resident_growth=max(0, direct.growth),
            resident_growth_by_copies=max(0, staged.growth),
            ratio=statistics.median(
                a / b for a, b in zip(direct_seconds, staged_seconds, strict=True)
            ),
            in_place_s=direct_seconds,
            copies_s=staged_seconds,
            wrong=checked["wrong"],
            wrong_by_copies=checked_copies["wrong"],
            checked=checked["checked"],
            driver_nbytes=_DRIVER_NBYTES if runtime.device.has_own_memory else 0,
        )


def _load_kernels(runtime: Runtime, nbytes: int) -> None:
    """Computes such a product in the device's own memory.

    Drivers load a kernel into the process when it is first used, and which one it is depends on
    the size: tens of megabytes that are not the product's.
    """
    device, rows = runtime.device, nbytes // _ROW_NBYTES
    graph = Graph(device.library, 4)
    a, b = graph.tensor(GgmlType.F32, _K, rows), graph.tensor(GgmlType.F32, _K, _N)
    product = graph.matmul_f32(b, a)
    graph.expand(product)
    with graph, device.new_backend() as backend:
        memory = GraphAllocator(device.library, device.buffer_type)
        with memory:
            memory.allocate(graph)
            backend.compute(graph.pointer)


class _Gemm:
    """One actor with matrices of `nbytes`; `growth` is what its first product took."""

    def __init__(self, runtime: Runtime, nbytes: int, *, copies: bool) -> None:
        limits = Limits(memory_nbytes=align_up(nbytes + _HEAP_NBYTES, WASM_PAGE))
        self._actor = runtime.spawn("gemm", seed=0, clock_ns=0, copy_tensors=copies, limits=limits)
        for _ in range(_WARM_UP):  # what every actor needs once, however large its matrices
            self._actor.send(f"rows=16 k={_K} n={_N}")
        rows = nbytes // _ROW_NBYTES
        self._setup = json.loads(self._actor.send(f"setup rows={rows} k={_K} n={_N}").text)
        self._first = True
        self.growth = 0
        self.bytes_copied = 0

    def compute(self) -> float:
        """Seconds that the host took for one product."""
        host_ns, copied = self._actor.counters.host_ns, self._actor.counters.bytes_copied
        if self._first:
            for _ in range(_WARM_UP):  # all that messages touch, without computing
                self._actor.send("compute repeat=0")
            gc.collect()
            before = exact_resident_nbytes()
        self._actor.send("compute repeat=1")
        if self._first:
            gc.collect()
            self.growth = exact_resident_nbytes() - before
            self._first = False
        self.bytes_copied += self._actor.counters.bytes_copied - copied
        return (self._actor.counters.host_ns - host_ns) / 1e9

    def check(self) -> dict[str, int]:
        """The guest's own verdict on every element."""
        verdict: dict[str, int] = json.loads(self._actor.send("check").text)
        return verdict

    def addresses(self) -> dict[str, str]:
        """The result's address as guest, host and device have it."""
        ptr = GuestPtr(self._setup["c"])
        host = self._actor.region.address(ptr, 1)
        return {
            "guest": hex(_memory_base(self._actor) + ptr),
            "host": hex(host),
            "device": hex(self._actor.binding.address(host)),
        }

    def pointer_identity(self) -> bool:
        """Whether the three are one."""
        guest, host, device = (int(address, 16) for address in self.addresses().values())
        return _is_one(self._actor, guest, HostAddr(host), DeviceAddr(device))

    def __enter__(self) -> _Gemm:
        return self

    def __exit__(self, *exc: object) -> None:
        self._actor.close()


def _is_one(actor: Actor, guest: int, host: HostAddr, device: DeviceAddr) -> bool:
    """Whether three addresses are one. A device that imports memory numbers it anew."""
    sharing = actor.device.info.sharing
    if sharing in ("imported", "copied"):
        return guest == host and sharing == "imported"
    return guest == host == int(device)


def _memory_base(actor: Actor) -> int:
    """Where wasmtime itself says that the guest's memory begins."""
    instance = actor.instance
    memory = instance.export("memory")
    assert isinstance(memory, wasmtime.Memory)
    return capi.base_address(memory, instance.store)
