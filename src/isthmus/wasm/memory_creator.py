"""Gives wasmtime every linear memory out of a Region.

Owns the ctypes callbacks that wasmtime calls, and one reference to each Region whose memory
wasmtime still uses. The Region's other owner is the Instance, which closes it after its store.

::

    Instance ── MemoryRequest ──► instantiate ──► new_memory ──► reserve ──► Region
                                                                │
             memory.grow in the guest ──► grow_memory ──────────┤
             the store is freed       ──► finalizer   ──────────┘ drops the reference

wasmtime calls back on the thread that instantiates, so that thread's request says what to do.
No exception leaves a callback: wasmtime is given an error object, and the request keeps ours.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import wasmtime

from isthmus.errors import GuestInvalid, IsthmusError, RegionError
from isthmus.memory.region import Region
from isthmus.native import wasmtime_capi as capi
from isthmus.units import MAX_NBYTES_32, WASM_PAGE, format_nbytes

Reserve = Callable[[int, int], Region]
"""(reserved_nbytes, guard_nbytes) -> a Region with at least so many bytes reserved, none in use."""


Admit = Callable[[int, int], None]
"""(more_nbytes, limit_nbytes): asked before a memory grows by so much, also when it is made; raises
where it must not. `limit_nbytes` is more than 0 where the memory's own limit refuses it anyway."""


def admit_all(_more_nbytes: int, _limit_nbytes: int) -> None:
    """Lets every memory grow up to its limit."""


@dataclass
class MemoryRequest:
    """What the next linear memory on this thread must be, and then what became of it."""

    limit_nbytes: int
    reserve: Reserve
    admit: Admit = admit_all
    is_64: bool = False
    """Whether its pointers have 64 bits."""
    region: Region | None = None
    error: BaseException | None = None


@dataclass(frozen=True)
class _LinearMemory:
    """A memory that wasmtime uses."""

    region: Region
    capacity_nbytes: int
    """Growth beyond it fails: the actor's limit, the module's maximum or the reservation."""
    admit: Admit


class _Requests(threading.local):
    current: MemoryRequest | None = None


class MemoryCreator:
    """See the module. Must live as long as any engine or store that uses it."""

    def __init__(self) -> None:
        self._requests = _Requests()
        self._memories: dict[int, _LinearMemory] = {}
        self._numbers = itertools.count(1)
        self._new = capi.NEW_MEMORY_CALLBACK(self._new_memory)
        self._callbacks = capi.MemoryCallbacks(
            capi.GET_MEMORY_CALLBACK(self._get_memory),
            capi.GROW_MEMORY_CALLBACK(self._grow_memory),
            capi.FINALIZE_CALLBACK(self._finalize),
        )

    def install(self, config: wasmtime.Config) -> None:
        """Makes engines of `config` take their linear memories from here."""
        capi.set_memory_creator(config, self._new)

    @property
    def n_memories(self) -> int:
        """How many linear memories wasmtime uses now."""
        return len(self._memories)

    @contextmanager
    def requested(self, request: MemoryRequest) -> Iterator[None]:
        """While open, a linear memory made on this thread answers `request`.

        Whoever made the request owns its `region`, also when instantiation failed.
        """
        outer, self._requests.current = self._requests.current, request
        try:
            yield
        finally:
            self._requests.current = outer

    def _new_memory(
        self, _env: Any, _type: Any, minimum: int, maximum: int, reserved: int, guard: int, out: Any
    ) -> int:
        request = self._requests.current
        if request is None:
            return capi.new_error("a linear memory that no instance asked for")
        try:
            capacity = min(maximum, request.limit_nbytes, reserved or maximum)
            if not request.is_64:
                capacity = min(capacity, MAX_NBYTES_32)
            memory = _create(request, minimum, capacity, reserved, guard)
            number = next(self._numbers)
            self._memories[number] = memory
            capi.fill_linear_memory(out, number, self._callbacks)
        except BaseException as error:
            request.error = error
            return capi.new_error("the host gave no memory")
        return 0

    def _get_memory(self, env: int, nbytes: Any, capacity_nbytes: Any) -> int:
        memory = self._memories[env]
        nbytes[0] = memory.region.nbytes
        capacity_nbytes[0] = memory.region.reserved_nbytes  # beyond it we are not even asked
        return memory.region.base

    def _grow_memory(self, env: int, nbytes: int) -> int:
        memory = self._memories[env]
        try:
            more = nbytes - memory.region.nbytes
            if nbytes > memory.capacity_nbytes:
                memory.admit(more, memory.capacity_nbytes)
                return capi.new_error(f"memory is limited to {memory.capacity_nbytes} bytes")
            memory.admit(more, 0)
            memory.region.grow(nbytes)
        except IsthmusError as error:
            return capi.new_error(str(error))
        except BaseException:
            return capi.new_error("the host failed to grow the memory")
        return 0

    def _finalize(self, env: int) -> None:
        self._memories.pop(env, None)


def _create(
    request: MemoryRequest, minimum: int, capacity: int, reserved: int, guard: int
) -> _LinearMemory:
    """Reserves a Region for a memory of `minimum` to `capacity` bytes and commits `minimum`.

    `reserved` is what an engine with guard pages insists on; without them it is 0, and a device
    that supplies the memory may give less than the capacity.
    """
    if request.region is not None:
        raise GuestInvalid("the guest has more than one linear memory")
    if minimum > request.limit_nbytes:
        raise GuestInvalid(
            f"the guest asks for {minimum // WASM_PAGE} pages ({format_nbytes(minimum)}) of memory "
            f"at the start and may have {format_nbytes(request.limit_nbytes)}"
        )
    request.admit(minimum, 0)
    # A memory that is and stays empty has an address as well.
    request.region = region = request.reserve(max(reserved or capacity, WASM_PAGE), guard)
    if region.reserved_nbytes < max(reserved, minimum):
        raise RegionError(
            f"a region of {region.reserved_nbytes} bytes was given where "
            f"{max(reserved, minimum)} are needed"
        )
    if region.nbytes:
        raise RegionError(f"a region was given of which {region.nbytes} bytes are in use already")
    region.grow(minimum)
    return _LinearMemory(region, min(capacity, region.reserved_nbytes), request.admit)
