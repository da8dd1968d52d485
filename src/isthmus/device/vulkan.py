"""Vulkan: guests' memory is imported into the device (`VK_EXT_external_memory_host`).

The device sees the same bytes under addresses of its own, through PCIe on a discrete card, where KV
caches lie in the card's own memory (`own.py`). Weights are copied once into the device's own
memory, as drivers take no pages of files. amdgpu takes none but anonymous private pages, which a
Region's are.

ggml's device says that it cannot import memory, and does.
"""

from __future__ import annotations

from isthmus.config import DeviceSettings
from isthmus.device.base import Device
from isthmus.device.finding import Kind
from isthmus.device.importing import ImportingDevice
from isthmus.native.loader import Library


def open_device(library: Library, settings: DeviceSettings, index: int = 0) -> Device:
    """Opens the Vulkan device of that number. Raises DeviceUnavailable."""
    return VulkanDevice(library, settings, index)


class VulkanDevice(ImportingDevice):
    """See the module."""

    kind = Kind(
        name="vulkan",
        registry="Vulkan",
        driver="libvulkan.so.1",
        install_library="docs/devices.md lists libraries that have it; give one by --ggml",
        install_driver="install the graphics driver with its Vulkan part "
        "(on Debian and Ubuntu: mesa-vulkan-drivers, or the driver of the card's maker)",
        nodes="/dev/dri/renderD*",
    )
    in_place = "imported"

    @property
    def kv_alignment(self) -> tuple[int, int]:
        return 256, 0  # the most that Vulkan lets a device ask of an offset
