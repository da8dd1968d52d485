"""Vulkan: the guest's memory is imported into the device (`VK_EXT_external_memory_host`).

The device sees the same bytes under addresses of its own, through PCIe on a discrete card: what a
kernel reads and writes there, such as the KV cache, stays in the processor's memory. Weights are
copied once into the device's own memory.

Imported pages are pinned: they must be there when they are imported, must not be replaced by
others, and must be anonymous and private (amdgpu takes no others). So guests' memory is imported
as it grows, and restored by copying.

ggml's device says that it cannot import; whether it can is found out by importing a page.
"""

from __future__ import annotations

from isthmus.config import DeviceSettings
from isthmus.device.base import Device, DeviceInfo
from isthmus.device.buffer import Binding
from isthmus.device.copied import CopiedBinding
from isthmus.device.finding import Kind, Ladder, find_device
from isthmus.errors import DeviceFailed
from isthmus.memory import Region
from isthmus.native.loader import Library
from isthmus.units import WASM_PAGE

KIND = Kind(
    name="vulkan",
    registry="Vulkan",
    driver="libvulkan.so.1",
    install_library="see docs/devices.md for libraries that have it, and give one by --ggml",
    install_driver="install the graphics driver with its Vulkan part "
    "(on Debian and Ubuntu: mesa-vulkan-drivers, or the driver of the card's maker)",
    nodes="/dev/dri/renderD*",
)


def open_device(library: Library, settings: DeviceSettings, index: int = 0) -> Device:
    """Opens the Vulkan device of that number. Raises DeviceUnavailable."""
    return VulkanDevice(library, settings, index)


class VulkanDevice(Device):
    """Owns nothing but its thread: ggml keeps the Vulkan device for the process."""

    def __init__(self, library: Library, settings: DeviceSettings, index: int) -> None:
        handle = find_device(library, KIND, index)
        super().__init__(f"{KIND.name}:{index}", handle, library, settings)
        ladder = Ladder(settings.sharing)
        self.sharing = ladder.take(imported=self._why_not_imported, copied=lambda: "")
        self._info = self._describe(threads=0, features=(), notes=ladder.notes)

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
            return CopiedBinding(self.allocate, region, self.counters)
        return Binding(self.import_memory, region, whole=False)

    @property
    def kv_alignment(self) -> tuple[int, int]:
        return 256, 0  # the most that a device may ask of a binding's offset

    def _why_not_imported(self) -> str:
        """Why memory cannot be imported; empty where it can."""
        with Region.reserve(WASM_PAGE, nbytes=WASM_PAGE) as region:
            try:
                self.import_memory(region.base, WASM_PAGE).close()
            except DeviceFailed as error:
                return str(error)
        return ""
