"""What a guest keeps outside its linear memory between two messages: its mutable globals."""

from __future__ import annotations

from dataclasses import dataclass

import wasmtime

from isthmus.errors import SnapshotInvalid
from isthmus.native import wasmtime_capi as capi
from isthmus.wasm.instance import Instance
from isthmus.wasm.instrument import GLOBAL_EXPORT


@dataclass(frozen=True)
class GlobalValue:
    """One mutable global: its index in the module, its type, and its bits, little-endian."""

    index: int
    type: str
    bits: bytes


def read_globals(instance: Instance) -> tuple[GlobalValue, ...]:
    """All mutable globals of an instance that runs nothing, in the module's order."""
    values = []
    for index, found in _globals(instance).items():
        kind, bits = capi.read_global(instance.store, found)
        values.append(GlobalValue(index, kind, bits))
    return tuple(values)


def write_globals(instance: Instance, values: tuple[GlobalValue, ...]) -> None:
    """Sets all mutable globals; SnapshotInvalid, and nothing is set, unless they are the same."""
    found = _globals(instance)
    known = {index: capi.read_global(instance.store, found[index])[0] for index in found}
    if {value.index: value.type for value in values} != known or len(values) != len(known):
        raise SnapshotInvalid(f"the snapshot's globals are not those of {instance.guest.name}")
    if any(len(value.bits) != capi.VALUE_NBYTES[value.type] for value in values):
        raise SnapshotInvalid("the snapshot has a global of the wrong size")
    for value in values:
        capi.write_global(instance.store, found[value.index], value.type, value.bits)


def _globals(instance: Instance) -> dict[int, wasmtime.Global]:
    found = {}
    for index in instance.guest.mutable_globals:
        exported = instance.export(f"{GLOBAL_EXPORT}{index}")
        assert isinstance(exported, wasmtime.Global), "instrument.py exports all of them"
        found[index] = exported
    return found
