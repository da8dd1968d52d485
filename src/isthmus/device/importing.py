"""Devices that address memory which the process already has: Metal and Vulkan.

Such memory is pinned or wrapped page by page when it is bound: its pages must be there, and must
not be replaced by others. So guests' memory is bound as it grows, and restored by copying into it.
Whether a device does it at all is found out by binding a page; a copy is what is left.
"""

from __future__ import annotations

from typing import ClassVar

from isthmus.config import DeviceSettings
from isthmus.device.base import Device, DeviceInfo
from isthmus.device.buffer import Binding
from isthmus.device.copied import CopiedBinding
from isthmus.device.finding import Kind, Ladder, find_device
from isthmus.device.own import OwnBinding
from isthmus.errors import DeviceFailed
from isthmus.memory import Region
from isthmus.native._ggml import DeviceType
from isthmus.native.loader import Library
from isthmus.units import WASM_PAGE


class ImportingDevice(Device):
    """Owns nothing but its thread: ggml keeps the device itself for the process."""

    kind: ClassVar[Kind]
    in_place: ClassVar[str]
    """How it shares where it need not copy: `same` or `imported`."""

    def __init__(self, library: Library, settings: DeviceSettings, index: int) -> None:
        handle = find_device(library, self.kind, index)
        super().__init__(f"{self.kind.name}:{index}", handle, library, settings)
        ladder = Ladder(settings.sharing)
        ways = {self.in_place: self._why_not_in_place, "copied": lambda: ""}
        self.sharing = ladder.take(**ways)
        props = self._props()
        on_bus = props.type == DeviceType.GPU and bool(props.device_id)
        why_own = self.keep_caches(far=on_bus)
        self._info = self._describe(notes=[*ladder.notes, *filter(None, [why_own])])

    @property
    def info(self) -> DeviceInfo:
        return self._info

    def reserve(self, reserved_nbytes: int, guard_nbytes: int) -> Region:
        return Region.reserve(reserved_nbytes, guard_nbytes, remappable=self.remaps)

    @property
    def remaps(self) -> bool:
        return self.sharing == "copied"

    def bind(self, region: Region) -> Binding:
        if self.sharing == "copied":
            return CopiedBinding(self.allocate, region, self.counters, self.largest_buffer)
        if self.caches is not None:
            return OwnBinding(
                self.import_memory,
                region,
                self.caches,
                self.counters,
                largest=self.largest_buffer,
            )
        return Binding(self.import_memory, region, largest=self.largest_buffer)

    def _why_not_in_place(self) -> str:
        with Region.reserve(WASM_PAGE, nbytes=WASM_PAGE) as region:
            try:
                self.import_memory(region.base, WASM_PAGE).close()
            except DeviceFailed as error:
                return str(error)
        return ""
